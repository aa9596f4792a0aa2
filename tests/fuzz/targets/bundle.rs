//! Manifests of guard bundles: what is read says the same when it is written and read again.

#![no_main]

use forethought_core::guard::bundle::{Bundle, Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let folder = std::env::temp_dir().join(format!("forethought-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("guard.toml");
    std::fs::write(&file, data).expect("a file");
    match Manifest::read(&file) {
        Ok(manifest) => {
            let text = toml::to_string(&manifest).expect("a manifest can be written");
            std::fs::write(&file, text).expect("a file");
            assert_eq!(Manifest::read(&file).expect("it can be read again"), manifest);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(bundle) = Bundle::open(&folder.to_string_lossy()) {
        let _ = (bundle.adapter(), bundle.probes(), bundle.adapter_sha256());
    }
});
