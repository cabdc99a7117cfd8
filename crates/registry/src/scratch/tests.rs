use std::fs;

use assay_image::oci::Layer;
use assay_image::rope::Rope;

use super::*;

fn stored(layer: &Layer, compression: LayerCompression) -> StoredLayer {
    StoredLayer {
        bytes: layer.blob().content().to_bytes(),
        compression,
    }
}

#[test]
fn layers_are_what_they_would_be_in_memory_and_no_file_has_a_name() {
    let directory = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(directory.path()).unwrap();
    let tar: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let plain = Bytes::from(tar);
    let zstd = StoredLayer {
        bytes: zstd::bulk::compress(&plain, 3).unwrap().into(),
        compression: LayerCompression::Zstd,
    };
    let gzip = Layer::gzip(&Rope::from(plain.clone())).unwrap();
    let layers = vec![
        stored(&gzip, LayerCompression::Gzip),
        zstd,
        stored(&Layer::tar(Rope::new()), LayerCompression::None),
    ];
    let uncompressed = scratch.uncompress(layers).unwrap();
    let bytes: Vec<_> = uncompressed.iter().map(|layer| &layer.bytes).collect();
    assert_eq!(bytes, [&plain, &plain, &Bytes::new()]);
    assert!(
        uncompressed
            .iter()
            .all(|layer| layer.compression == LayerCompression::None)
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn what_is_given_back_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(directory.path()).unwrap();
    let content = vec![7; 1 << 20];
    let kept = scratch.keep(&mut content.as_slice()).unwrap();
    assert_eq!(kept, content);
    scratch.maps.give_back();
    assert_eq!(kept, content);
}

#[test]
fn a_broken_layer_is_the_image_s_fault_and_a_missing_directory_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(directory.path()).unwrap();
    let broken = StoredLayer {
        bytes: Bytes::from_static(b"no gzip"),
        compression: LayerCompression::Gzip,
    };
    let error = scratch.uncompress(vec![broken]).unwrap_err();
    assert!(matches!(error, ScratchError::Uncompress(_)), "{error}");

    let error = Scratch::new(directory.path().join("absent")).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}
