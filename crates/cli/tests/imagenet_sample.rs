//! Classification of 200 real images by pretrained models, from the JPEG file to the class, against
//! PyTorch.
//!
//! `STILLHOUSE_WEIGHTS` names the folder of the weights files, and `STILLHOUSE_DATA` the root of the
//! datasets, with `imagenet-sample`. JPEG decoders differ by single gray levels, so predictions are
//! compared if the reference has a margin of at least 0.5, and by the number of correct images.

use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor};
use stillhouse_backbones::registry;
use stillhouse_backbones::weights::{find_weights, load_weights};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::registry::WeightsInfo;
use stillhouse_core::weights::LoadOptions;
use stillhouse_core::{ParamStore, Rng, Tape};
use stillhouse_datasets::decode::read_image;
use stillhouse_ops::Mode;

/// The middle 224 x 224 pixels, normalized, `[3, 224, 224]`.
fn picture(path: &Path, info: &WeightsInfo) -> Tensor {
    const SIDE: usize = 224;
    let image = read_image(path, None).unwrap();
    let (left, top) = ((image.width - SIDE) / 2, (image.height - SIDE) / 2);
    let mut values = Vec::with_capacity(3 * SIDE * SIDE);
    for c in 0..3 {
        for y in top..top + SIDE {
            for x in left..left + SIDE {
                let v = f32::from(image.pixels[(y * image.width + x) * 3 + c]) / 255.0;
                values.push((v - info.mean[c]) / info.std[c]);
            }
        }
    }
    Tensor::from_vec(values, (3, SIDE, SIDE), &Device::Cpu).unwrap()
}

#[test]
#[ignore = "set STILLHOUSE_WEIGHTS and STILLHOUSE_DATA"]
fn needs_weights_classifies_200_images_as_pytorch() {
    let folder = |name: &str| PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("set {name}")));
    let (files, data) = (folder("STILLHOUSE_WEIGHTS"), folder("STILLHOUSE_DATA"));
    let sample = data.join("imagenet-sample");
    let table = std::fs::read_to_string(sample.join("expected_imagenet_sample.csv")).unwrap();
    let mut lines = table.lines().map(|l| l.split(',').collect::<Vec<_>>());
    let head = lines.next().unwrap();
    let rows: Vec<_> = lines.collect();
    assert!(!rows.is_empty());
    for (arch, column, variant) in [
        ("resnet18", "resnet18_timm", ""),
        ("resnet50", "resnet50_stride1x1", "stride_in_1x1 = true"),
        ("resnet50", "resnet50_timm", ""),
        ("mobilenetv2_100", "mobilenetv2_100_same", "padding = 'same'"),
        ("mobilenetv2_100", "mobilenetv2_100_timm", ""),
    ] {
        let at = |what: &str| head.iter().position(|h| *h == format!("{column}.{what}")).unwrap();
        let (argmax, margin) = (at("argmax"), at("margin"));
        let info = find_weights(arch, &toml::Table::new(), &"imagenet".into(), std::slice::from_ref(&files))
            .unwrap();
        let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
        let variant = toml::from_str(variant).unwrap();
        let request = ModelSpec { name: arch.into(), classes: 1000, variant };
        let net = (registry().get(arch).unwrap().build)(&request, &params.builder(Rng::new(0))).unwrap();
        assert!(load_weights(&info.path, &params, &net.head(), &LoadOptions::default()).unwrap().is_empty());
        let mut tape = Tape::new(&params, Mode::Inference).unwrap();
        let (mut correct, mut expected_correct, mut different, mut compared) = (0, 0, 0, 0);
        for batch in rows.chunks(20) {
            let images: Vec<Tensor> =
                batch.iter().map(|row| picture(&sample.join("images").join(row[0]), &info)).collect();
            tape.begin(Rng::new(0), 0);
            let features = net.forward(&Tensor::stack(&images, 0).unwrap(), &mut tape).unwrap();
            let got: Vec<u32> = features.logits().unwrap().argmax(D::Minus1).unwrap().to_vec1().unwrap();
            for (row, got) in batch.iter().zip(got) {
                let [class, want] = [row[1], row[argmax]].map(|v| v.parse::<u32>().unwrap());
                correct += u32::from(got == class);
                expected_correct += u32::from(want == class);
                different += u32::from(got != want);
                if row[margin].parse::<f32>().unwrap() >= 0.5 {
                    compared += 1;
                    assert_eq!(got, want, "{column}: {}", row[0]);
                }
            }
        }
        println!(
            "{column}: {correct} of {} correct, expected {expected_correct}; {different} predictions differ, none of \
             the {compared} with a margin of 0.5",
            rows.len()
        );
        assert!(
            u32::abs_diff(correct, expected_correct) <= 3,
            "{column}: {correct}, expected {expected_correct}"
        );
    }
}
