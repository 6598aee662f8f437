//! One step of knowledge distillation on random logits: `cargo run -p stillhouse-losses --example kd`.

use candle_core::{Device, Tensor, Var};
use stillhouse_core::data::Target;
use stillhouse_core::distiller::LossContext;
use stillhouse_core::model::Features;
use stillhouse_core::{Result, Rng};

fn main() -> Result<()> {
    let student = Var::randn(0f32, 1., (8, 10), &Device::Cpu)?;
    let teacher = Tensor::randn(0f32, 3., (8, 10), &Device::Cpu)?;
    let taps = |logits: &Tensor| Features::from_iter([("logits".to_string(), logits.clone())]);
    let target = Target::Classes(Tensor::arange(0u32, 8, &Device::Cpu)?);

    let methods = stillhouse_losses::registry();
    for i in 0..5 {
        let (student_taps, teacher_taps) = (taps(student.as_tensor()), taps(&teacher));
        let step = LossContext {
            student: &student_taps,
            teacher: &teacher_taps,
            target: &target,
            on_host: &target,
            images: &Tensor::zeros((1, 3, 1, 1), candle_core::DType::F32, &Device::Cpu)?,
            ids: &[],
            given: &Features::default(),
            epoch: 0.0,
            step: i,
            train: true,
            rng: Rng::new(0),
        };
        let mut loss = Tensor::zeros((), student.dtype(), &Device::Cpu)?;
        for (name, settings) in
            [("ce", toml::toml! { weight = 0.1 }), ("kd", toml::toml! { temperature = 4.0 })]
        {
            for term in (methods.get(name)?.build)(&settings)?.terms(&step)? {
                print!("{} {:.4}  ", term.name, term.value.to_scalar::<f32>()?);
                loss = (loss + (term.value * term.weight)?)?;
            }
        }
        println!("loss {:.4}", loss.to_scalar::<f32>()?);
        if let Some(gradient) = loss.backward()?.get(&student) {
            student.set(&(student.as_tensor() - (gradient * 5.0)?)?)?;
        }
    }
    Ok(())
}
