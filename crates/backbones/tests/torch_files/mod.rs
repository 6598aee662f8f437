//! PyTorch files: supported variants, and malicious ones.

use std::time::{Duration, Instant};

use stillhouse_backbones::weights::{Format, WeightsFile};
use stillhouse_testkit::corruption;

use super::*;
use crate::torch_writer::{self, Saved};

/// Converts parameters for the writer of PyTorch files.
pub(super) fn saved(params: &ParamStore) -> Vec<Saved> {
    let all = params.export_all().unwrap().into_iter();
    all.map(|(name, t)| {
        let values = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        Saved::floats(&name, t.dims(), &values)
    })
    .collect()
}

#[test]
fn reads_pytorch_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    let source = tiny(1, 5, DType::F32);
    let plain = saved(&source);
    let mut several = plain.clone();
    for tensor in &mut several {
        tensor.name.insert_str(0, "module.");
    }
    // A permuted tensor with an offset, and one of f16.
    let mut odd = plain.clone();
    let turned = by_name(&source)["fc.weight"].t().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    odd[2] = Saved::floats("fc.weight", &[5, 4], &[&[7.0, 7.0][..], &turned].concat());
    (odd[2].strides, odd[2].offset) = (vec![1, 5], 2);
    let halves = |t: &Tensor| t.to_dtype(DType::F16).unwrap().to_vec1::<half::f16>().unwrap();
    let bias = halves(&by_name(&source)["fc.bias"]);
    odd[3].storage = "HalfStorage";
    odd[3].bytes = bias.iter().flat_map(|v| v.to_le_bytes()).collect();
    // A counter, which models do not have.
    let mut counted = plain.clone();
    let zero = Saved {
        storage: "LongStorage",
        bytes: vec![0; 8],
        ..Saved::floats("bn.num_batches_tracked", &[], &[0.0])
    };
    counted.push(zero);
    for (what, bytes, format) in [
        ("archive", torch_writer::archive(&torch_writer::dict(&plain), &plain), Format::PyTorch),
        ("legacy", torch_writer::legacy(&torch_writer::dict(&plain), &plain), Format::LegacyPyTorch),
        ("several devices", torch_writer::archive(&torch_writer::dict(&several), &several), Format::PyTorch),
        (
            "wrapped",
            torch_writer::archive(&torch_writer::wrapped("model", &torch_writer::dict(&plain)), &plain),
            Format::PyTorch,
        ),
        ("permuted, f16", torch_writer::archive(&torch_writer::dict(&odd), &odd), Format::PyTorch),
        ("counter", torch_writer::legacy(&torch_writer::dict(&counted), &counted), Format::LegacyPyTorch),
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(WeightsFile::open(&path).unwrap().format(), format, "{what}");
        let params = tiny(2, 5, DType::F32);
        load_weights(&path, &params, &head(), &EXACT).unwrap_or_else(|e| panic!("{what}: {e}"));
        let (got, mut expected) = (values(&params), values(&source));
        if what == "permuted, f16" {
            expected[3] = bias.iter().map(|v| v.to_f32()).collect();
        }
        assert_eq!(got, expected, "{what}");
    }
}

/// Peak virtual memory of this process in MiB.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmPeak:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? >> 10)
}

/// Files that claim gigabytes are rejected quickly and without allocating them.
#[test]
fn rejects_malicious_files() {
    let plain = saved(&tiny(1, 5, DType::F32));
    let one = |change: &dyn Fn(&mut Saved)| {
        let mut all = plain.clone();
        change(&mut all[0]);
        all
    };
    let as_archive = |all: Vec<Saved>| torch_writer::archive(&torch_writer::dict(&all), &all);
    let as_legacy = |all: Vec<Saved>| torch_writer::legacy(&torch_writer::dict(&all), &all);
    let expression = |text: &[u8]| torch_writer::archive(text, &plain);
    let doubled = {
        // Each list contains the previous one twice.
        let mut text = b"]q\x00".to_vec();
        for index in 0..200u8 {
            text.extend([b']', b'q', index + 1, b'h', index, b'a', b'h', index, b'a']);
        }
        text
    };
    let good = as_archive(plain.clone());
    let central = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let entries = |count: u16| {
        let mut file = good.clone();
        let end = file.len() - 22;
        file[end + 10..end + 12].copy_from_slice(&count.to_le_bytes());
        file
    };
    let header = |text: &str, data: usize| {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &vec![0; data]].concat()
    };
    let far = 1usize << 40;
    let files: Vec<(&str, Vec<u8>)> = vec![
        // PyTorch archives that execute code.
        ("a command", expression(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R")),
        ("eval", expression(b"cbuiltins\neval\n(X\x01\x00\x00\x001tR")),
        ("a class", expression(b"c__main__\nNet\n)R")),
        ("an instance", expression(b"(i__main__\nNet\n")),
        ("NEWOBJ", expression(b"ccollections\nOrderedDict\n)\x81")),
        ("attributes of a tensor", expression(&[&torch_writer::tensor(&plain[0], 0)[..], b"}b"].concat())),
        ("an extension", expression(b"\x82\x01")),
        ("STACK_GLOBAL", expression(b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93")),
        // Excessive memory or stack.
        ("a string of gigabytes", expression(b"X\xff\xff\xff\xff")),
        ("deep nesting", expression(&[&b")"[..], &[0x85; 1 << 20]].concat())),
        ("lists that double", expression(&doubled)),
        ("endless values", expression(&vec![b'N'; 2 << 20])),
        ("endless GETs", expression(&[&b"}q\x00"[..], &b"h\x00".repeat(1 << 20)].concat())),
        ("a huge shape", as_archive(one(&|t| t.shape = vec![far, 3, 2, 2]))),
        ("a shape that overflows", as_archive(one(&|t| t.shape = vec![far, far, 2, 2]))),
        ("repeated values", as_archive(one(&|t| (t.shape, t.strides) = (vec![far], vec![0])))),
        ("strides outside", as_archive(one(&|t| t.strides = vec![far, 1, 1, 1]))),
        ("an offset outside", as_archive(one(&|t| t.offset = far))),
        ("a longer storage", as_archive(one(&|t| t.length = far))),
        ("a longer storage in a legacy file", as_legacy(one(&|t| t.length = far))),
        // Incomplete files.
        ("an empty stack", expression(b"0")),
        ("values before a mark", expression(b"((K\x01ttt")),
        ("no dictionary", expression(b"K\x01")),
        ("an empty dictionary", expression(b"}")),
        ("a dictionary of itself", expression(b"}q\x00X\x05\x00\x00\x00modelh\x00s")),
        ("no pickle", torch_writer::zip(&[("version", b"3")])),
        ("two pickles", torch_writer::zip(&[("data.pkl", b"x"), ("b/data.pkl", b"x"), ("data.pkl/", b"")])),
        ("a program", torch_writer::zip(&[("constants.pkl", b"x")])),
        ("another byte order", torch_writer::zip(&[("byteorder", b"big")])),
        ("a missing record", torch_writer::archive(&torch_writer::dict(&plain), &plain[..1])),
        ("half an archive", good[..good.len() / 2].to_vec()),
        ("a wrong number of records", entries(u16::MAX)),
        ("a record outside of the file", {
            let mut file = good.clone();
            file[central + 42..central + 46].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
            file
        }),
        ("half a legacy file", {
            let all = as_legacy(plain.clone());
            all[..all.len() - 9].to_vec()
        }),
        (
            "a legacy file without keys",
            [torch_writer::LEGACY_HEADER, &torch_writer::pickle(&torch_writer::dict(&plain)), b"\x80\x02N."]
                .concat(),
        ),
        // safetensors; more in `rejects_malicious_headers`.
        (
            "a header of gigabytes",
            header("{}", 0).iter().enumerate().map(|(i, b)| if i < 8 { 0x7f } else { *b }).collect(),
        ),
        (
            "a tensor of gigabytes",
            header(r#"{"a":{"dtype":"F32","shape":[4294967296],"data_offsets":[0,17179869184]}}"#, 4),
        ),
    ];
    assert!(files.len() >= 30, "{}", files.len());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("malicious.pth");
    let before = peak();
    for (what, bytes) in files {
        std::fs::write(&path, bytes).unwrap();
        let params = tiny(2, 5, DType::F32);
        // The fastest of several runs, because other processes use the CPU too.
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            let begun = Instant::now();
            let error = own(load_weights(&path, &params, &head(), &EXACT));
            fastest = fastest.min(begun.elapsed());
            let Error::Malformed { reason, .. } = &error else { panic!("{what}: {error}") };
            assert!(reason.len() > 10 && error.to_string().contains("malicious.pth"), "{what}: {error}");
        }
        assert!(fastest < Duration::from_millis(100), "{what}: {fastest:?}");
        assert_eq!(values(&params), values(&tiny(2, 5, DType::F32)), "{what}");
    }
    if let (Some(before), Some(after)) = (before, peak()) {
        assert!(after < before + 2048, "{before} MiB before, {after} after");
    }
}

#[test]
fn survives_corrupted_pytorch_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    let plain = saved(&tiny(1, 5, DType::F32));
    for whole in [
        torch_writer::archive(&torch_writer::dict(&plain), &plain),
        torch_writer::legacy(&torch_writer::dict(&plain), &plain),
    ] {
        for broken in corruption::corruptions(&whole, 200) {
            std::fs::write(&path, &broken.bytes).unwrap();
            let params = tiny(2, 5, DType::F32);
            let before = values(&params);
            if let Err(e) = load_weights(&path, &params, &head(), &EXACT) {
                assert!(e.to_string().contains("x.pth"), "{}: {e}", broken.what);
                assert_eq!(values(&params), before, "{}", broken.what);
            }
        }
    }
}
