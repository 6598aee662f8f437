# The front door: `make` lists the targets. Each does its own set-up; all that it takes is Rust.

CARGO ?= cargo
# smoke: minutes; reduced: hours on real images; paper: days. `make reproduce-table3 PROFILE=reduced`
PROFILE ?= smoke
# More arguments of the command, as in ARGS="--set train.epochs=3"
ARGS ?=
# How many kills `make kill-test` survives.
KILLS ?= 50

REPRODUCE = $(CARGO) run --release --locked -p stillhouse-cli --bin stillhouse -- reproduce
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))

export CARGO_TERM_COLOR ?= auto

.DEFAULT_GOAL := help
.PHONY: help cargo reproduce-table1 reproduce-table3 reproduce-table4 reproduce-table5 reproduce-table6 reproduce-table7 reproduce-landuse reproduce-frkd-table1 reproduce-frkd-table2 reproduce-frkd-gamma reproduce-mksmt-cub reproduce-mksmt-nabirds reproduce-mksmt-dogs reproduce-mksmt-ablation reproduce-mksmt-sizes slurm-test test test-long test-transformers check fmt clippy docs deny kill-test fuzz cargo-fuzz golden bench sanitize miri cuda-check card gpu-check clean

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PROFILE=smoke|reduced|paper for the tables (now: $(PROFILE)), ARGS=... for its command"

cargo:
	@command -v $(CARGO) >/dev/null 2>&1 || { \
	  echo "error: cargo was not found"; echo; \
	  echo "hint: install Rust with rustup (https://rustup.rs), then open a new shell and try again"; \
	  exit 2; }

reproduce-table1: cargo ## Print Table 1: the datasets (counts, runs nothing)
	$(REPRODUCE) table1 $(ARGS)

reproduce-table3: cargo ## Run Table 3 of the class-centric paper and print it (PROFILE=smoke: minutes)
	$(REPRODUCE) table3 --profile $(PROFILE) $(ARGS)

reproduce-table4: cargo ## Print Table 4: parameters and operations (counts, runs nothing)
	$(REPRODUCE) table4 $(ARGS)

reproduce-table5: cargo ## Run Table 5: RSC11, RSSCN7 and AID at 60 %
	$(REPRODUCE) table5 --profile $(PROFILE) $(ARGS)

reproduce-table6: cargo ## Run Table 6: NST, NST over the batch, class-centric
	$(REPRODUCE) table6 --profile $(PROFILE) $(ARGS)

reproduce-table7: cargo ## Run Table 7: confusion matrices, error under training, features in the plane
	$(REPRODUCE) table7 --profile $(PROFILE) $(ARGS)

reproduce-landuse: cargo ## Run VGG16 to MobileNetV2 with KL, cosine and both (land use)
	$(REPRODUCE) landuse --profile $(PROFILE) $(ARGS)

reproduce-frkd-table1: cargo ## Run Table 1 of the FRKDNet paper: what each part brings (segmentation)
	$(REPRODUCE) frkd_table1 --profile $(PROFILE) $(ARGS)

reproduce-frkd-table2: cargo ## Run Table 2: FRKDNet beside other methods, two students, overlays
	$(REPRODUCE) frkd_table2 --profile $(PROFILE) $(ARGS)

reproduce-frkd-gamma: cargo ## Run Fig. 4: mean IoU over gamma
	$(REPRODUCE) frkd_gamma --profile $(PROFILE) $(ARGS)

reproduce-mksmt-cub: cargo ## Run MKSMT's Table 4: Swin with two exits and two steps a batch on CUB-200-2011
	$(REPRODUCE) mksmt_cub --profile $(PROFILE) $(ARGS)

reproduce-mksmt-nabirds: cargo ## Run MKSMT's Table 5: the same on NABirds
	$(REPRODUCE) mksmt_nabirds --profile $(PROFILE) $(ARGS)

reproduce-mksmt-dogs: cargo ## Run MKSMT's Table 6: the same on Stanford Dogs
	$(REPRODUCE) mksmt_dogs --profile $(PROFILE) $(ARGS)

reproduce-mksmt-ablation: cargo ## Run MKSMT's Tables 8 to 11 and Figure 3: steps, order, features, temperature
	$(REPRODUCE) mksmt_ablation --profile $(PROFILE) $(ARGS)

reproduce-mksmt-sizes: cargo ## Print MKSMT's Table 7: parameters and operations (counts, runs nothing)
	$(REPRODUCE) mksmt_sizes $(ARGS)

test: cargo ## Run all tests of the workspace
	$(CARGO) test --workspace --locked --no-run
	STILLHOUSE_TEST_BINARY="$(TARGET)/debug/stillhouse" $(CARGO) test --workspace --locked

test-long: cargo ## Run the tests that take longer than `make test` may: every method on every network, the largest networks
	$(CARGO) test --workspace --locked -- --ignored

test-transformers: cargo ## Compare the teachers of candle-transformers (feature `transformers`) with timm's values
	$(CARGO) test --locked -p stillhouse-backbones --features transformers --test transformers

check: fmt clippy docs deny ## Format, clippy, rustdoc, licenses, layers: what a change has to pass besides the tests
	$(CARGO) test --locked -p stillhouse-tests --test layers --test documents

fmt: cargo
	$(CARGO) fmt --all -- --check

clippy: cargo
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

docs: cargo
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

deny: cargo
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources

kill-test: cargo ## Kill a run KILLS times (50) at random moments; it must end with the same bytes
	STILLHOUSE_KILLS=$(KILLS) $(CARGO) test --locked -p stillhouse-tests --test kill -- --nocapture

slurm-test: cargo ## A small grid (GRID=whole: all of Table 3's smoke) through a real Slurm here, a task killed (slurm-wlm, munge, root)
	$(CARGO) build --release --locked -p stillhouse-cli --bin stillhouse
	tests/slurm.sh $(TARGET)/release/stillhouse $(or $(GRID),small)

fuzz: cargo ## Read FUZZ (2000) damaged files of each kind: image formats, lists and MAT files, parquet, archives
	STILLHOUSE_FUZZ=$(or $(FUZZ),2000) $(CARGO) test --locked -p stillhouse-datasets --lib --test mutations --test archives damaged

cargo-fuzz: cargo ## Run the fuzz targets (READER=... for one) for SECONDS (60) each; needs nightly and cargo-fuzz
	fuzz/run.sh $(or $(SECONDS),60) $(READER)

golden: cargo ## Compare losses, metrics, networks and transforms with the stored values
	$(CARGO) test --locked -p stillhouse-losses -p stillhouse-metrics -p stillhouse-backbones -p stillhouse-datasets --test golden -- --nocapture

bench: cargo $(if $(findstring cuda,$(ARGS)),card) ## Time our steps beside PyTorch's, in one run (CASE=... for some, STILLHOUSE_PYTHON names a Python with torch, ARGS="--device cuda" on a card)
	$(CARGO) run --release --locked -p stillhouse-bench $(if $(findstring cuda,$(ARGS)),--features cuda) -- \
	  $(if $(CASE),--case $(CASE)) $(ARGS)

sanitize: cargo ## Run the tests of the layers under AddressSanitizer with each instruction set (needs a nightly toolchain)
	for isa in avx512 avx2 scalar; do \
	  STILLHOUSE_ISA=$$isa ASAN_OPTIONS=detect_leaks=0 RUSTFLAGS="-Zsanitizer=address -Cdebuginfo=1" \
	  RUSTUP_TOOLCHAIN=nightly \
	  $(CARGO) test --locked --target-dir target/sanitize --target "$$(rustc -vV | sed -n 's/host: //p')" \
	    -p stillhouse-ops --lib --tests || exit 1; \
	done

miri: cargo ## Run the small tests of the layers in Miri, with the scalar kernels (needs a nightly toolchain with miri)
	MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows -Zmiri-ignore-leaks" RAYON_NUM_THREADS=2 \
	RUSTUP_TOOLCHAIN=nightly \
	$(CARGO) miri test --locked --target-dir target/miri -p stillhouse-ops --lib --test layers -- \
	  given_up a_block_is_turned rounds_to_nearest_even misuse max_pool_takes what_needs_no

cuda-check: cargo ## Type-check the build with CUDA; takes neither toolkit nor card
	crates/ops/cuda/check.sh

# Not a target of its own.
card:
	@command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q . || { \
	  echo "error: there is no NVIDIA card here that nvidia-smi can see; nothing was run"; \
	  echo "hint: docs/cuda.md says what a card has never shown; make cuda-check runs anywhere"; \
	  exit 1; }

gpu-check: cargo card ## Test layers, maps and optimizers on the first NVIDIA card, then time steps there (needs the CUDA toolkit and cuDNN; CASE=... for some steps)
	STILLHOUSE_DEVICE=cuda $(CARGO) test --release --locked -p stillhouse-ops --features cuda \
	  --lib --test layers --test maps --test optim --test pytorch --test graph_conv --test bf16 --test svd \
	  -- --skip kernels_ --test-threads=1
	STILLHOUSE_DEVICE=cuda $(CARGO) test --release --locked -p stillhouse-trainer --features cuda \
	  --test later -- later_ --test-threads=1
	$(MAKE) bench ARGS="--device cuda --rounds 5 $(ARGS)"

clean: ## Remove what was built; runs, data and weights stay
	$(CARGO) clean
