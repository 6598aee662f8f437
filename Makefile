# `make` lists the targets. They need only Rust.

CARGO ?= cargo
# quick: minutes; reduced: hours on real images; paper: days. Example: make reproduce-table3 PROFILE=reduced
PROFILE ?= quick
# Additional arguments, for example ARGS="--set train.epochs=3"
ARGS ?=
# Number of kills of `make kill-test`.
KILLS ?= 50

REPRODUCE = $(CARGO) run --release --locked -p stillhouse-cli --bin stillhouse -- reproduce
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))

export CARGO_TERM_COLOR ?= auto

.DEFAULT_GOAL := help
.PHONY: help cargo reproduce-table1 reproduce-table3 reproduce-table4 reproduce-table5 reproduce-table6 reproduce-table7 reproduce-landuse reproduce-frkd-table1 reproduce-frkd-table2 reproduce-frkd-gamma reproduce-mksmt-cub reproduce-mksmt-nabirds reproduce-mksmt-dogs reproduce-mksmt-ablation reproduce-mksmt-sizes slurm-test test test-long test-data test-weights test-python test-transformers check fmt clippy docs deny kill-test fuzz cargo-fuzz golden bench sanitize miri cuda-check gpu gpu-check book clean

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PROFILE=quick|reduced|paper selects the scale of a table (now: $(PROFILE)); ARGS=... adds arguments"

cargo:
	@command -v $(CARGO) >/dev/null 2>&1 || { \
	  echo "error: cargo was not found"; echo; \
	  echo "hint: install Rust from https://rustup.rs, then open a new shell"; \
	  exit 2; }

reproduce-table1: cargo ## Print Table 1 of the class-centric paper: dataset sizes (no training)
	$(REPRODUCE) table1 $(ARGS)

reproduce-table3: cargo ## Run and print Table 3 of the class-centric paper (quick: less than half an hour)
	$(REPRODUCE) table3 --profile $(PROFILE) $(ARGS)

reproduce-table4: cargo ## Print Table 4: parameters and FLOPs (no training)
	$(REPRODUCE) table4 $(ARGS)

reproduce-table5: cargo ## Run Table 5: RSC11, RSSCN7 and AID, 60 % training images
	$(REPRODUCE) table5 --profile $(PROFILE) $(ARGS)

reproduce-table6: cargo ## Run Table 6: NST, NST over the batch, class-centric
	$(REPRODUCE) table6 --profile $(PROFILE) $(ARGS)

reproduce-table7: cargo ## Run Table 7: confusion matrices, training error, feature embeddings
	$(REPRODUCE) table7 --profile $(PROFILE) $(ARGS)

reproduce-landuse: cargo ## Run the land-use paper: VGG16 to MobileNetV2 with KL, cosine and both
	$(REPRODUCE) landuse --profile $(PROFILE) $(ARGS)

reproduce-frkd-table1: cargo ## Run Table 1 of the FRKDNet paper: ablation (segmentation)
	$(REPRODUCE) frkd_table1 --profile $(PROFILE) $(ARGS)

reproduce-frkd-table2: cargo ## Run Table 2: FRKDNet and other methods, two students
	$(REPRODUCE) frkd_table2 --profile $(PROFILE) $(ARGS)

reproduce-frkd-gamma: cargo ## Run Figure 4: mean IoU over gamma
	$(REPRODUCE) frkd_gamma --profile $(PROFILE) $(ARGS)

reproduce-mksmt-cub: cargo ## Run Table 4 of the MKSMT paper: Swin self-distillation on CUB-200-2011
	$(REPRODUCE) mksmt_cub --profile $(PROFILE) $(ARGS)

reproduce-mksmt-nabirds: cargo ## Run Table 5: NABirds
	$(REPRODUCE) mksmt_nabirds --profile $(PROFILE) $(ARGS)

reproduce-mksmt-dogs: cargo ## Run Table 6: Stanford Dogs
	$(REPRODUCE) mksmt_dogs --profile $(PROFILE) $(ARGS)

reproduce-mksmt-ablation: cargo ## Run Tables 8 to 11 and Figure 3: phases, order, features, temperature
	$(REPRODUCE) mksmt_ablation --profile $(PROFILE) $(ARGS)

reproduce-mksmt-sizes: cargo ## Print Table 7: parameters and MACs (no training)
	$(REPRODUCE) mksmt_sizes $(ARGS)

test: cargo ## Run all tests of the workspace
	$(CARGO) test --workspace --locked --no-run
	STILLHOUSE_TEST_BINARY="$(TARGET)/debug/stillhouse" $(CARGO) test --workspace --locked

test-long: cargo ## Run the tests that take longer: every method on every model, the largest models
	$(CARGO) test --workspace --locked -- --ignored --skip needs_

test-data: cargo ## Run the tests on real datasets (needs STILLHOUSE_DATA)
	$(CARGO) test --locked -p stillhouse-datasets --test real_data -- --ignored --nocapture

test-weights: cargo ## Run the tests on pretrained weights (needs STILLHOUSE_WEIGHTS, some also STILLHOUSE_DATA)
	$(CARGO) test --release --locked -p stillhouse-backbones -p stillhouse-cli -- --ignored needs_weights

test-python: cargo ## Compare weights and ONNX files with PyTorch, timm and onnxruntime (needs STILLHOUSE_PYTHON)
	$(CARGO) test --locked -p stillhouse-backbones --test weights -- --ignored needs_python

test-transformers: cargo ## Compare candle-transformers teachers (feature `transformers`) with timm
	$(CARGO) test --locked -p stillhouse-backbones --features transformers --test transformers

check: fmt clippy docs deny ## Check format, clippy, rustdoc, licenses, layering and docs
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

kill-test: cargo ## Kill a run KILLS (50) times at random; it must resume to the same bytes
	STILLHOUSE_KILLS=$(KILLS) $(CARGO) test --locked -p stillhouse-tests --test kill -- --nocapture

slurm-test: cargo ## Run a small grid (GRID=whole: Table 3 quick) through a local Slurm, killing a task (needs slurm-wlm, munge, root)
	$(CARGO) build --release --locked -p stillhouse-cli --bin stillhouse
	tests/slurm.sh $(TARGET)/release/stillhouse $(or $(GRID),small)

fuzz: cargo ## Read FUZZ (2000) damaged files of each format
	STILLHOUSE_FUZZ=$(or $(FUZZ),2000) $(CARGO) test --locked -p stillhouse-datasets --lib --test mutations --test archives damaged

cargo-fuzz: cargo ## Run the fuzz targets (READER=... for one) for SECONDS (60) each (needs nightly and cargo-fuzz)
	fuzz/run.sh $(or $(SECONDS),60) $(READER)

golden: cargo ## Compare losses, metrics, models and transforms with golden values
	$(CARGO) test --locked -p stillhouse-losses -p stillhouse-metrics -p stillhouse-backbones -p stillhouse-datasets --test golden -- --nocapture

bench: cargo $(if $(findstring cuda,$(ARGS)),gpu) ## Time training steps against PyTorch (CASE=... filters, STILLHOUSE_PYTHON is a Python with torch, ARGS="--device cuda" for a GPU)
	$(CARGO) run --release --locked -p stillhouse-bench $(if $(findstring cuda,$(ARGS)),--features cuda) -- \
	  $(if $(CASE),--case $(CASE)) $(ARGS)

sanitize: cargo ## Run the layer tests under AddressSanitizer for each instruction set (needs nightly)
	for isa in avx512 avx2 scalar; do \
	  STILLHOUSE_ISA=$$isa ASAN_OPTIONS=detect_leaks=0 RUSTFLAGS="-Zsanitizer=address -Cdebuginfo=1" \
	  RUSTUP_TOOLCHAIN=nightly \
	  $(CARGO) test --locked --target-dir target/sanitize --target "$$(rustc -vV | sed -n 's/host: //p')" \
	    -p stillhouse-ops --lib --tests || exit 1; \
	done

miri: cargo ## Run the small layer tests in Miri with the scalar kernels (needs nightly with miri)
	MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows -Zmiri-ignore-leaks" RAYON_NUM_THREADS=2 \
	RUSTUP_TOOLCHAIN=nightly \
	$(CARGO) miri test --locked --target-dir target/miri -p stillhouse-ops --lib --test layers -- \
	  released_weight transposes_a_block rejects_misuse max_pool_uses frozen_parameters

cuda-check: cargo ## Type-check the CUDA build (needs neither toolkit nor GPU)
	crates/ops/cuda/check.sh

# Prerequisite of the GPU targets.
gpu:
	@command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q . || { \
	  echo "error: nvidia-smi finds no NVIDIA GPU; nothing was run"; \
	  echo "hint: docs/cuda.md lists the requirements; make cuda-check runs on any machine"; \
	  exit 1; }

gpu-check: cargo gpu ## Test layers and optimizers on the first NVIDIA GPU, then time steps (needs the CUDA toolkit and cuDNN)
	STILLHOUSE_DEVICE=cuda $(CARGO) test --release --locked -p stillhouse-ops --features cuda \
	  --lib --test layers --test map_layers --test optim --test pytorch --test graph_conv --test bf16 --test svd \
	  -- --skip kernels_ --test-threads=1
	STILLHOUSE_DEVICE=cuda $(CARGO) test --release --locked -p stillhouse-trainer --features cuda \
	  --test deferred_metrics -- later_ --test-threads=1
	$(MAKE) bench ARGS="--device cuda --rounds 5 $(ARGS)"

book: ## Build the documentation as a book in target/book (needs mdbook)
	@command -v mdbook >/dev/null 2>&1 || { \
	  echo "error: mdbook was not found"; echo; \
	  echo "hint: cargo install mdbook --locked"; \
	  exit 2; }
	mdbook build

clean: ## Remove build artifacts; runs, data and weights stay
	$(CARGO) clean
