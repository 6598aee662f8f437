//! Parameters, inputs and labels of the models' golden values, generated from their names so that no
//! weights need to be stored. `tests/golden/models/README.md` defines the rules.

/// Hashes a name with 64-bit FNV-1a; the hash seeds the stream of that name.
pub fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Returns the endless stream of a name: splitmix64, seeded by its hash.
pub fn stream(name: &str) -> impl Iterator<Item = u64> {
    let mut state = fnv1a64(name);
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// Returns `u` in [0, 1).
fn unit(z: u64) -> f64 {
    (z >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Returns `s = 2 u - 1` in [-1, 1).
fn signed(z: u64) -> f64 {
    2.0 * unit(z) - 1.0
}

/// Generates a parameter or buffer from its full name, in row-major order, by the first rule that
/// matches the name.
///
/// # Panics
/// If no rule matches.
pub fn parameter(name: &str, shape: &[usize], gain: f64, bias_shift: f64) -> Vec<f32> {
    let n: usize = shape.iter().product();
    let fill = |f: &dyn Fn(u64) -> f64| stream(name).take(n).map(|z| f(z) as f32).collect();
    if name.ends_with("num_batches_tracked") {
        vec![0.0; n]
    } else if name.ends_with("running_mean") {
        fill(&|z| 0.1 * signed(z))
    } else if name.ends_with("running_var") {
        fill(&|z| 0.5 + unit(z))
    } else if name.ends_with("relative_position_bias_table") {
        fill(&|z| 0.5 * signed(z))
    } else if shape.len() >= 2 {
        let fan_in: usize = shape[1..].iter().product();
        let scale = gain * (3.0 / fan_in as f64).sqrt();
        fill(&|z| signed(z) * scale)
    } else if name.ends_with("weight") {
        fill(&|z| 0.5 + unit(z))
    } else if name.ends_with("bias") {
        fill(&|z| bias_shift + 0.1 * signed(z))
    } else {
        panic!("no rule of the generator matches `{name}` of shape {shape:?}")
    }
}

/// Generates images `[B, 3, H, W]` in [-2, 2), in row-major order.
pub fn input(name: &str, shape: &[usize]) -> Vec<f32> {
    stream(name).take(shape.iter().product()).map(|z| (2.0 * signed(z)) as f32).collect()
}

/// Generates `n` class labels.
pub fn labels(name: &str, n: usize, classes: usize) -> Vec<u32> {
    stream(name).take(n).map(|z| (z % classes as u64) as u32).collect()
}

/// Generates label masks `[B, H, W]` in row-major order; about a tenth of the pixels are 255, ignored.
pub fn mask(name: &str, shape: &[usize], classes: usize) -> Vec<u32> {
    stream(name)
        .take(shape.iter().product())
        .map(|z| if z.is_multiple_of(10) { 255 } else { ((z >> 8) % classes as u64) as u32 })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use serde_json::Value;

    #[test]
    fn matches_known_values() {
        let bits = |v: Vec<f32>| v.iter().take(4).map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(fnv1a64("conv1.weight"), 0x69a2_9a2c_ee47_d254);
        assert_eq!(stream("conv1.weight").next(), Some(0x8b8a_08a8_5128_a1b0));
        assert_eq!(
            bits(parameter("conv1.weight", &[64, 3, 7, 7], 1.0, 0.0)),
            [0x3c53_009e, 0x3d8f_7464, 0xbe0b_9458, 0x3d8a_35a0]
        );
        assert_eq!(
            bits(parameter("layer1.0.bn1.running_var", &[64], 1.0, 0.0)),
            [0x3f92_b807, 0x3fab_4ccf, 0x3fa3_ffd0, 0x3f27_9724]
        );
        assert_eq!(
            bits(parameter("head.fc.bias", &[21], 1.0, 0.0)),
            [0xbd9a_e560, 0xbdaa_4969, 0xbd98_1f7a, 0xbd5f_7446]
        );
        assert_eq!(parameter("bn1.num_batches_tracked", &[], 1.0, 0.0), [0.0]);
    }

    #[test]
    fn applies_the_rules_of_buffers_and_scales() {
        let s = signed(stream("bn1.running_mean").next().unwrap());
        assert_eq!(parameter("bn1.running_mean", &[3], 1.0, 1.0)[0], (0.1 * s) as f32);
        let u = unit(stream("bn1.weight").next().unwrap());
        assert_eq!(parameter("bn1.weight", &[3], 2.0, 1.0)[0], (0.5 + u) as f32);
    }

    #[test]
    #[should_panic(expected = "no rule")]
    fn rejects_names_without_a_rule() {
        parameter("logit_scale", &[1], 1.0, 0.0);
    }

    /// Checks every case of kind `generator`; a folder may have none.
    #[test]
    fn matches_the_golden_vectors() {
        let number = |v: &Value| {
            let text = v.as_str().expect("hex as a string");
            u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("hex")
        };
        let mut checked = 0;
        for case in golden::require("models").iter().filter(|c| c.meta["kind"] == "generator") {
            assert_eq!(case.meta["format"], "stillhouse-golden-model-1", "{case}");
            for v in case.meta["vectors"].as_array().expect("vectors") {
                let name = v["name"].as_str().expect("name");
                let list = |key: &str| v[key].as_array().unwrap_or_else(|| panic!("{case}: {name}: {key}"));
                let shape: Vec<usize> = list("shape").iter().map(|d| d.as_u64().unwrap() as usize).collect();
                if !v["fnv1a64"].is_null() {
                    assert_eq!(fnv1a64(name), number(&v["fnv1a64"]), "{case}: {name}: hash");
                }
                if !v["raw"].is_null() {
                    let raw: Vec<u64> = list("raw").iter().map(number).collect();
                    assert_eq!(stream(name).take(raw.len()).collect::<Vec<_>>(), raw, "{case}: {name}");
                }
                let first = list("first");
                let floats = |got: Vec<f32>| {
                    let want: Vec<u64> = first.iter().map(number).collect();
                    let bits: Vec<u64> = got.iter().map(|x| u64::from(x.to_bits())).collect();
                    assert_eq!(bits[..want.len()], want, "{case}: {name}: first values");
                    assert_eq!(*bits.last().unwrap(), number(&v["last"]), "{case}: {name}: last value");
                };
                let integers = |got: Vec<u32>| {
                    let want: Vec<u64> = first.iter().map(|x| x.as_u64().unwrap()).collect();
                    let got: Vec<u64> = got.iter().take(want.len()).map(|&x| u64::from(x)).collect();
                    assert_eq!(got, want, "{case}: {name}: labels");
                };
                let classes = || v["classes"].as_u64().expect("classes") as usize;
                let real = |key: &str| v[key].as_f64().expect("a number");
                match v["use"].as_str() {
                    Some("fill") => floats(parameter(name, &shape, real("gain"), real("bias_shift"))),
                    Some("input") => floats(input(name, &shape)),
                    Some("labels") => integers(labels(name, shape[0], classes())),
                    Some("label_map") => integers(mask(name, &shape, classes())),
                    other => panic!("{case}: unknown use {other:?}"),
                }
                checked += 1;
            }
        }
        println!("{checked} vectors of the generator checked");
    }
}
