//! One step of knowledge distillation on random logits: `cargo run -p stillhouse-losses --example kd`.

use candle_core::{Device, Tensor, Var};
use stillhouse_core::Result;
use stillhouse_core::data::{Labels, Target};
use stillhouse_core::distiller::LossContext;
use stillhouse_core::model::Features;

fn main() -> Result<()> {
    let student = Var::randn(0f32, 1., (8, 10), &Device::Cpu)?;
    let teacher = Tensor::randn(0f32, 3., (8, 10), &Device::Cpu)?;
    let features = |logits: &Tensor| Features::from_iter([("logits".to_string(), logits.clone())]);
    let target = Target::on_cpu(Labels::Classes(Tensor::arange(0u32, 8, &Device::Cpu)?));

    let methods = stillhouse_losses::registry();
    for step in 0..5 {
        let (of_student, of_teacher) = (features(student.as_tensor()), features(&teacher));
        let context = LossContext { step, ..LossContext::new(&of_student, &of_teacher, &target) };
        let mut loss = Tensor::zeros((), student.dtype(), &Device::Cpu)?;
        for (name, settings) in
            [("ce", toml::toml! { weight = 0.1 }), ("kd", toml::toml! { temperature = 4.0 })]
        {
            for term in (methods.get(name)?.build)(&settings)?.terms(&context)? {
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
