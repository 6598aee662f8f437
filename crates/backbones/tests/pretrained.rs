//! Pretrained weights on real images: logits and pooled features against PyTorch 2.15.0 and timm 1.0.31.
//!
//! `STILLHOUSE_WEIGHTS` names the folder of the weights files, and `STILLHOUSE_DATA` the root of the
//! datasets, with `imagenet-sample`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor};
use stillhouse_backbones::registry;
use stillhouse_backbones::weights::{find_weights, load_weights};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::registry::WeightsInfo;
use stillhouse_core::weights::LoadOptions;
use stillhouse_core::{ParamStore, Rng, Tape};
use stillhouse_ops::Mode;

fn folder(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("set {variable}")).into()
}

/// Reads an RGB image as normalized `[3, H, W]`.
fn image(path: &Path, info: &WeightsInfo) -> Tensor {
    let mut reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut bytes).unwrap();
    assert_eq!((frame.color_type, frame.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    let shape = (frame.height as usize, frame.width as usize, 3);
    let channel = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu).unwrap();
    let pixels = Tensor::from_vec(bytes, shape, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    let scaled = (pixels / 255.0).unwrap().broadcast_sub(&channel(info.mean)).unwrap();
    scaled.broadcast_div(&channel(info.std)).unwrap().permute((2, 0, 1)).unwrap().contiguous().unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn classes(logits: &Tensor) -> Vec<u32> {
    logits.argmax(D::Minus1).unwrap().to_vec1().unwrap()
}

/// Variant of a column of the expected values.
fn variant(column: &str) -> toml::Table {
    let text = match column {
        "resnet50_stride1x1" => "stride_in_1x1 = true",
        "mobilenetv2_100_same" => "padding = 'same'",
        _ => "",
    };
    toml::from_str(text).unwrap()
}

#[test]
#[ignore = "set STILLHOUSE_WEIGHTS and STILLHOUSE_DATA"]
fn needs_weights_reproduces_reference_logits() {
    let (files, data) = (folder("STILLHOUSE_WEIGHTS"), folder("STILLHOUSE_DATA"));
    let exact = data.join("imagenet-sample/exact");
    let bytes = std::fs::read(exact.join("expected.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let order = header.metadata().as_ref().unwrap()["order"].clone();
    let expected = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    for (arch, columns) in [
        ("resnet18", &["resnet18_timm"][..]),
        ("resnet50", &["resnet50_stride1x1", "resnet50_timm"]),
        ("mobilenetv2_100", &["mobilenetv2_100_same", "mobilenetv2_100_timm"]),
    ] {
        let info = find_weights(arch, &toml::Table::new(), &"imagenet".into(), std::slice::from_ref(&files))
            .unwrap();
        // The variant of the manifest is that of the first column.
        assert_eq!(info.variant, variant(columns[0]), "{arch}");
        let batch: Vec<Tensor> = order.split(',').map(|name| image(&exact.join(name), &info)).collect();
        let batch = Tensor::stack(&batch, 0).unwrap();
        for column in columns {
            let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
            let request = ModelSpec { name: arch.into(), classes: 1000, variant: variant(column) };
            let entry = *registry().get(arch).unwrap();
            let net = (entry.build)(&request, &params.builder(Rng::new(0))).unwrap();
            assert!(
                load_weights(&info.path, &params, &net.head(), &LoadOptions::default()).unwrap().is_empty()
            );
            for mode in [Mode::Eval, Mode::Inference] {
                let mut tape = Tape::new(&params, mode).unwrap();
                tape.select_features(&["pooled", "logits"]);
                tape.begin(Rng::new(0), 0);
                let features = net.forward(&batch, &mut tape).unwrap();
                let (logits, pooled) = (features.logits().unwrap(), features.get("pooled").unwrap());
                let reference = &expected[&format!("{column}.logits")];
                let off = largest_difference(logits, reference);
                let pooled_off = largest_difference(pooled, &expected[&format!("{column}.pooled")]);
                println!("{column}, {mode:?}: logits within {off:.1e}, pooled within {pooled_off:.1e}");
                assert!(off < 1e-3 && pooled_off < 1e-3, "{column}, {mode:?}: {off}, {pooled_off}");
                assert_eq!(classes(logits), classes(reference), "{column}, {mode:?}");
            }
        }
    }
}
