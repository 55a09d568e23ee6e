//! Training takes no more memory than it says before it begins, and not much less: counted by an
//! allocator of this binary's own. Not here: what training gives (`train.rs`).

#![cfg(feature = "cli")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use twn_pack::data::{DataSet, Split};
use twn_pack::net::{Description, Overrides};
use twn_pack::train::{LayerMethod, Options, Recipe, Request, Rule, Setup, memory, train};

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which knows how much is held.
struct Counting;

fn grow(by: usize) {
    MOST.fetch_max(HELD.fetch_add(by, Relaxed) + by, Relaxed);
}

// SAFETY: every call goes on to the system's allocator unchanged; counting asks for no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HELD.fetch_sub(layout.size(), Relaxed);
        grow(size);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn memory_is_what_was_said() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mnist64");
    let overrides = |width| Overrides { input: Some([1, 28, 28]), width: Some(width), classes: Some(10) };
    for (network, width, batch, rule) in [
        ("lenet5", 1.0, 64, Rule::Sgd { momentum: 0.9 }),
        ("lenet5", 1.0, 3, Rule::Adam),
        ("resnet18-cifar", 0.25, 16, Rule::Sgd { momentum: 0.9 }),
        ("resnet18-cifar", 0.125, 64, Rule::Adam),
    ] {
        let description = Description::open(network).unwrap().with(overrides(width)).unwrap();
        let data = DataSet::open(&fixtures, Split::Test).unwrap();
        let method = LayerMethod { name: "twn".to_owned(), request: Request::default() };
        let names = description.weight_names().into_iter().map(|name| (name.to_owned(), method.clone()));
        let recipe = Recipe { epochs: 1, batch, rule, ..Recipe::named("repair").unwrap() };
        let checksum = data.checksum(data.len()).unwrap();
        let setup = Setup {
            network: network.to_owned(),
            layers: description.checksum(),
            data: [checksum; 2],
            methods: BTreeMap::from_iter(names),
            recipe,
            seed: 1,
            train_images: 64,
            test_images: 64,
        };
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            init: None,
            directory: directory.path(),
            resume: false,
            new_recipe: false,
            new_data: false,
            progress: None,
            epoch: None,
            cancel: None,
        };
        let before = HELD.load(Relaxed);
        MOST.store(before, Relaxed);
        train(&description, (&data, &data), &setup, &options).unwrap();
        let (found, said) =
            (MOST.load(Relaxed) - before, memory(&description, &setup, rayon::current_num_threads()) as usize);
        assert!(found < said, "{network} ×{width}, batches of {batch}: {found} bytes, said {said}");
        // What is on its way to the disk lies in mappings, which the allocator does not see.
        assert!(found > said / 2, "{network} ×{width}, batches of {batch}: {found} bytes, said {said}");
    }
}
