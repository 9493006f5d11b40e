//! What a GPU that fails, is full, or is not there, does to a request and to the process.

use std::time::Duration;

use cudarc::driver::CudaContext;

use super::driver::for_each_setting;
use super::model::{answer, open, request};
use crate::quant::TensorType;
use crate::testing::{model, tiny_llama};
use crate::{DeviceChoice, Engine, EngineOptions, Error, ModelOptions, Precision, gpus};

const GPU: DeviceChoice = DeviceChoice::Cuda(0);

fn options() -> EngineOptions {
    EngineOptions {
        threads: 1,
        kv_bytes: 1 << 20,
        ..EngineOptions::default()
    }
}

/// The text of a device error; anything else is a failure of the test.
fn device_error<T>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Device(text)) => text,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn a_failed_launch_is_an_error_of_the_requests_on_the_device_and_the_process_lives() {
    // In the prompt, at the first token, and later, when a recording is replayed; two codes that a driver gives.
    let settings: [&[(&str, &str)]; 4] = [
        &[("FAIL_LAUNCH", "1")],
        &[("FAIL_LAUNCH", "20")],
        &[("FAIL_LAUNCH", "70")],
        &[("FAIL_LAUNCH", "9"), ("FAIL_CODE", "46")],
    ];
    for_each_setting(&settings, || {
        let engine =
            Engine::start(open(TensorType::Q4_0, GPU, Precision::Fast), options()).unwrap();
        let text = device_error(answer(engine.generate(request("some text", 20)).unwrap()));
        assert!(
            text.contains("the GPU cannot go on in this process"),
            "{text}"
        );
        assert!(text.contains("device = \"cpu\""), "{text}");
        // The device is lost, and says so to the next request too.
        device_error(answer(engine.generate(request("more", 5)).unwrap()));
        assert_eq!(engine.stats().active, 0);
        drop(engine);
        // Another model, on the processor, serves.
        let model = open(TensorType::Q4_0, DeviceChoice::Cpu, Precision::Fast);
        let engine = Engine::start(model, options()).unwrap();
        assert_eq!(
            answer(engine.generate(request("text", 5)).unwrap())
                .unwrap()
                .len(),
            5
        );
        // A new model on the broken GPU is refused.
        let bytes = tiny_llama(TensorType::Q4_0, 256);
        let on_gpu = ModelOptions {
            device: GPU,
            ..ModelOptions::default()
        };
        device_error(model_error(&bytes, &on_gpu));
    });
}

fn model_error(bytes: &[u8], options: &ModelOptions) -> Result<(), Error> {
    model(bytes, options).map(|_| ())
}

#[test]
fn memory_that_is_missing_at_any_point_of_loading_is_a_clear_error() {
    let points = ["1", "2", "7", "17", "20", "25", "28", "30"];
    let settings: Vec<[(&str, &str); 1]> = points.iter().map(|at| [("FAIL_ALLOC", *at)]).collect();
    let settings: Vec<&[(&str, &str)]> = settings.iter().map(|one| &one[..]).collect();
    for_each_setting(&settings, || {
        let bytes = tiny_llama(TensorType::Q4_0, 256);
        let on_gpu = ModelOptions {
            device: GPU,
            ..ModelOptions::default()
        };
        let load = || -> Result<(), Error> {
            let engine = Engine::start(model(&bytes, &on_gpu)?, options())?;
            answer(engine.generate(request("text", 3))?).map(|_| ())
        };
        let text = device_error(load());
        assert!(text.contains("the GPU has no memory for"), "{text}");
        assert!(
            text.contains("MiB are free") && text.contains("`kv-cache`"),
            "{text}"
        );
        // It was the allocation that failed, not the device.
        load().unwrap();
    });
}

#[test]
fn a_cache_larger_than_the_memory_is_refused_and_memory_comes_back() {
    for_each_setting(&[&[("MEMORY_MB", "64")]], || {
        let context = CudaContext::new(0).unwrap();
        let free = || context.mem_get_info().unwrap().0;
        let before = free();
        let model = open(TensorType::Q8_0, GPU, Precision::Fast);
        let large = EngineOptions {
            kv_bytes: 100 << 20,
            ..options()
        };
        let text = device_error(Engine::start(model.clone(), large).map(|_| ()));
        assert!(text.contains("the KV cache (100 MiB; "), "{text}");
        let engine = Engine::start(model, options()).unwrap();
        answer(engine.generate(request("text", 3)).unwrap()).unwrap();
        assert!(free() < before);
        drop(engine);
        for _ in 0..1000 {
            if free() == before {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{} of {before} bytes are free", free());
    });
}

#[test]
fn a_gpu_that_cannot_be_used_is_told_and_the_processor_serves() {
    let settings: [&[(&str, &str)]; 4] = [
        &[("NO_DEVICE", "1")],
        &[("DEVICES", "0")],
        &[("CAPABILITY", "75")],
        &[("VERSION", "11080")],
    ];
    for_each_setting(&settings, || {
        let report = gpus();
        let problem = report.problem.clone().unwrap();
        let reason = report.gpus.iter().find_map(|gpu| gpu.unusable.clone());
        println!("{problem}: {reason:?}");
        let bytes = tiny_llama(TensorType::Q4_0, 256);
        let on_gpu = ModelOptions {
            device: GPU,
            ..ModelOptions::default()
        };
        let text = device_error(model_error(&bytes, &on_gpu));
        assert!(
            text.starts_with("cuda:0: ") && text.contains(&problem),
            "{text}"
        );
        let engine = Engine::start(
            open(TensorType::Q4_0, DeviceChoice::Auto, Precision::Fast),
            options(),
        );
        answer(engine.unwrap().generate(request("text", 3)).unwrap()).unwrap();
    });
}

#[test]
fn the_first_gpu_that_can_be_used_is_chosen_and_others_by_number() {
    for_each_setting(&[&[("DEVICES", "2")]], || {
        let report = gpus();
        assert_eq!((report.driver, report.problem), (Some((12, 8)), None));
        assert_eq!(report.gpus.len(), 2);
        assert_eq!(report.gpus[1].memory_bytes, 4096 << 20);
        assert_eq!(report.gpus[1].capability, (8, 0));
        assert_eq!(crate::cuda::first_usable(), Some(0));
        let open = |device| {
            let options = ModelOptions {
                device,
                ..ModelOptions::default()
            };
            model_error(&tiny_llama(TensorType::Q4_0, 256), &options)
        };
        open(DeviceChoice::Auto).unwrap();
        open(DeviceChoice::Cuda(1)).unwrap();
        let text = device_error(open(DeviceChoice::Cuda(2)));
        assert!(text.contains("there are 2 GPUs"), "{text}");
    });
}

#[test]
fn a_machine_without_a_driver_says_so_and_does_not_panic() {
    let report = gpus();
    if report.gpus.is_empty() {
        assert!(report.problem.unwrap().contains("driver"));
        let options = ModelOptions {
            device: GPU,
            ..ModelOptions::default()
        };
        let text = device_error(model_error(&tiny_llama(TensorType::Q4_0, 256), &options));
        assert!(text.starts_with("cuda:0: "), "{text}");
        assert_eq!(crate::cuda::first_usable(), None);
    }
}
