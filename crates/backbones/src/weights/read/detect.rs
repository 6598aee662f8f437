//! What a file is, by its content.

/// Bytes at the start of a file that are enough to recognize it.
pub(super) const HEAD: usize = 1024;

/// A readable kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Safetensors,
    Zip,
    LegacyPyTorch,
    Json,
}

/// Pickle of the magic number of files before PyTorch 1.6, without its opcodes.
const LEGACY_MAGIC: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// Other files, by their first bytes.
const KNOWN: &[(&[u8], &str)] = &[
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; get it by `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ\0", "an xz archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF file"),
    (b"MATLAB", "a MATLAB file"),
    (b"\x08\x01\x12", "a TensorFlow SavedModel"),
];

/// Recognizes a file by its first [`HEAD`] bytes, its last 8 and its length.
///
/// # Errors
/// What the file is, if it is not readable as weights.
pub(super) fn detect(head: &[u8], tail: &[u8], length: u64) -> Result<Content, String> {
    if head.is_empty() {
        return Err("empty file".into());
    }
    if head.starts_with(b"PK\x03\x04") {
        return Ok(Content::Zip);
    }
    if let Some((_, what)) = KNOWN.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err((*what).into());
    }
    if head[0] == 0x80 && head.len() > 1 {
        return match head[..head.len().min(32)].windows(LEGACY_MAGIC.len()).any(|w| w == LEGACY_MAGIC) {
            true => Ok(Content::LegacyPyTorch),
            false => Err("a Python pickle that torch.save did not write; save it by \
                          torch.save(model.state_dict(), ...)"
                .into()),
        };
    }
    // A safetensors file begins with the length of its header, below 2^24, in 8 bytes.
    let short = head.len() >= 8 && head[3..8] == [0; 5] && head[..3] != [0; 3];
    if short || head.get(8) == Some(&b'{') && !is_text(&head[..8]) {
        return Ok(Content::Safetensors);
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    match text.first() {
        Some(b'<') if is_text(text) => {
            return Err("an HTML or XML page, such as a sign-in or error page of a download".into());
        }
        Some(b'{' | b'[') if is_text(text) => return Ok(Content::Json),
        Some(_) if is_text(text) => return Err(format!("a text file that begins with `{}`", excerpt(text))),
        _ => {}
    }
    Err(detect_binary(head, tail, length))
}

fn detect_binary(head: &[u8], tail: &[u8], length: u64) -> String {
    let is_table = tail == 0xdb47_7524_8b80_fb57_u64.to_le_bytes();
    // Fields of a ModelProto: the version, then the producer, the version of the model, or the graph.
    let is_onnx = matches!(head, [0x08, 1..=32, 0x12 | 0x1a | 0x22 | 0x28 | 0x3a | 0x42, ..]);
    if is_table {
        "a TensorFlow checkpoint".into()
    } else if is_onnx {
        "an ONNX model, which is a graph; give the PyTorch or safetensors weights it was exported from".into()
    } else if head.get(257..262) == Some(b"ustar") {
        "a tar archive (or a file of PyTorch before 0.1.10); unpack it first".into()
    } else if head.get(4..8) == Some(b"TFL3") {
        "a TensorFlow Lite model".into()
    } else if head.iter().all(|b| *b == 0) {
        format!("{length} bytes that begin with zeros, as of an incomplete download")
    } else {
        let first: Vec<String> = head.iter().take(8).map(|b| format!("{b:02x}")).collect();
        format!("{length} bytes of an unknown format (first bytes: {})", first.join(" "))
    }
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..))
        && match std::str::from_utf8(bytes) {
            Ok(_) => true,
            // The head may end inside a character.
            Err(e) => e.error_len().is_none(),
        }
}

/// Returns the first words of a text.
fn excerpt(text: &[u8]) -> String {
    let line = String::from_utf8_lossy(text);
    line.lines().next().unwrap_or_default().chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_files_that_are_not_weights() {
        let table = 0xdb47_7524_8b80_fb57_u64.to_le_bytes();
        let mut tar = vec![b'x'; 512];
        tar[100] = 0;
        tar[257..262].copy_from_slice(b"ustar");
        for (head, what) in [
            (&b""[..], "empty file"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
            (b"<!DOCTYPE html>\n<html>", "HTML"),
            (b"\xef\xbb\xbf\n <?xml version='1.0'?><Error/>", "HTML or XML"),
            (b"\x08\x07\x12\x07pytorch", "ONNX"),
            (b"\x08\x09:\x80\x01", "ONNX"),
            (b"\x08\x01\x12\xaf\x05", "SavedModel"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
            (b"\x93NUMPY\x01\0", "NumPy"),
            (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.", "Python pickle"),
            (b"Not Found", "text file that begins with `Not Found`"),
            (&tar, "tar archive"),
            (&[0; 64], "zeros"),
            (b"\xde\xad\xbe\xef\0\0\0\0\0", "unknown format (first bytes: de ad be ef"),
        ] {
            let found = detect(head, &[1; 8], head.len() as u64).unwrap_err();
            assert!(found.contains(what), "{what}: {found}");
        }
        assert!(detect(b"\0\x05\x12abc\0\0\0\0", &table, 10).unwrap_err().contains("TensorFlow checkpoint"));
    }

    #[test]
    fn recognizes_weights() {
        for (head, content) in [
            (&b"PK\x03\x04\0"[..], Content::Zip),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", Content::LegacyPyTorch),
            (b"\x40\0\0\0\0\0\0\0{\"a\":", Content::Safetensors),
            (b"{\"metadata\": {}, \"weight_map\": {}}", Content::Json),
        ] {
            assert_eq!(detect(head, &[1; 8], head.len() as u64), Ok(content));
        }
    }
}
