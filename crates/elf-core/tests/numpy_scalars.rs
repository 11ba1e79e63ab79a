//! NumPy numbers in PyTorch checkpoints, which training scripts leave among losses and settings.

use std::io::Write;

use elf_core::pytorch::{PyTorchFile, Value};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Opens a checkpoint that consists of a pickle alone.
fn open(pickle: &[u8]) -> elf_core::Result<PyTorchFile> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    let mut zip = ZipWriter::new(std::fs::File::create(&path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip.start_file("x/data.pkl", stored).unwrap();
    zip.write_all(pickle).unwrap();
    zip.finish().unwrap();
    PyTorchFile::open(path)
}

#[test]
fn numbers_of_both_protocols_are_read() {
    for pickle in [&include_bytes!("fixtures/numpy_scalars_2.pkl")[..], include_bytes!("fixtures/numpy_scalars_4.pkl")]
    {
        let file = open(pickle).unwrap();
        let value = |key| file.value().get(key).unwrap().clone();
        assert_eq!((value("loss"), value("share")), (Value::Float(1.5), Value::Float(0.25)));
        assert_eq!(
            (value("step"), value("rows"), value("short")),
            (Value::Int(-7), Value::Int(70_000), Value::Int(-2))
        );
        assert_eq!((value("n"), value("done")), (Value::Int(200), Value::Bool(true)));
    }
}

#[test]
fn byte_orders_and_types_that_are_not_read() {
    let scalar = |code: &str, order: &str, bytes: &[u8]| {
        let mut pickle = b"\x80\x04cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n".to_vec();
        pickle.extend_from_slice(&[0x8c, code.len() as u8]);
        pickle.extend_from_slice(code.as_bytes());
        pickle.extend_from_slice(b"\x89\x88\x87R(K\x03");
        pickle.extend_from_slice(&[0x8c, order.len() as u8]);
        pickle.extend_from_slice(order.as_bytes());
        pickle.extend_from_slice(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb");
        pickle.extend_from_slice(&[b'C', bytes.len() as u8]);
        pickle.extend_from_slice(bytes);
        pickle.extend_from_slice(b"\x86R.");
        open(&pickle).map(|file| file.value().clone()).map_err(|e| e.to_string())
    };
    assert_eq!(scalar("f8", ">", &1.5f64.to_be_bytes()), Ok(Value::Float(1.5)));
    assert_eq!(scalar("f8", "<", &1.5f64.to_le_bytes()), Ok(Value::Float(1.5)));
    for (code, bytes) in [("c16", &[0; 16][..]), ("f8", &[0; 3]), ("u8", &[0xff; 8]), ("\n", &[0; 8])] {
        let message = scalar(code, "<", bytes).unwrap_err();
        assert!(message.contains("a NumPy number of type"), "{message}");
    }
    // Arrays and types themselves are no numbers.
    let message = open(b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R.").unwrap_err().to_string();
    assert!(message.contains("a NumPy type is in the place of a value"), "{message}");
    let message =
        open(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf-8\x86R.").unwrap_err().to_string();
    assert!(message.contains("Encode has arguments"), "{message}");
}
