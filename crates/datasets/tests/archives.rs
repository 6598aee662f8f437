//! Archives from untrusted hosts: valid ones are extracted, malicious ones are errors that name the
//! archive, and nothing is written outside of the target.

mod fixtures;

use std::fs;
use std::path::{Path, PathBuf};

use fixtures::archives::{Entry, ZipEntry, gz, tar, zip};
use proptest::prelude::{ProptestConfig, prop, proptest};
use stillhouse_datasets::Error;
use stillhouse_datasets::fetch::archive::unpack;

fn tried(
    bytes: &[u8],
    take: &[&str],
    strip: &str,
) -> (tempfile::TempDir, stillhouse_datasets::Result<usize>) {
    let folder = tempfile::tempdir().unwrap();
    let (archive, into) = (folder.path().join("set.archive"), folder.path().join("inside/into"));
    fs::write(&archive, bytes).unwrap();
    fs::create_dir_all(&into).unwrap();
    let take: Vec<String> = take.iter().map(ToString::to_string).collect();
    let result = unpack(&archive, &into, &take, strip);
    // Nothing outside of the target, in any case.
    let names = |path: &Path| {
        let mut all: Vec<String> = fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        all.sort();
        all
    };
    assert_eq!(names(folder.path()), ["inside", "set.archive"]);
    assert_eq!(names(&folder.path().join("inside")), ["into"]);
    (folder, result)
}

#[test]
fn extracts_valid_archives() {
    let long = format!("set/{}/b.txt", "n".repeat(150));
    let entries = [
        Entry::of("./", b'5', ""),
        Entry::of("set/", b'5', ""),
        Entry::file("set/a.txt", b"alpha"),
        Entry::file("./set/empty", b""),
        Entry::file("set/._a.txt", b"finder"),
        Entry::file("other/c.txt", b"not taken"),
        Entry::of("other/link", b'2', "/etc/passwd"),
        Entry { kind: b'L', ..Entry::file("././@LongLink", format!("{long}\0").as_bytes()) },
        Entry::file("set/cut-off-name", b"beta"),
        Entry { kind: b'x', ..Entry::file("pax", b"25 path=set/pax/name.txt\n") },
        Entry::file("short", b"gamma"),
    ];
    let plain = tar(&entries);
    let zipped = zip(&[
        ZipEntry::file("set/a.txt", b"alpha"),
        ZipEntry { deflate: false, ..ZipEntry::file("set/empty", b"") },
        ZipEntry { mode: 0, ..ZipEntry::file("set/folder/", b"") },
        ZipEntry::file(&long, b"beta"),
        ZipEntry::file("set/pax/name.txt", b"gamma"),
        ZipEntry::file("__MACOSX/set/a.txt", b"finder"),
        ZipEntry::file("other/c.txt", b"not taken"),
    ]);
    for bytes in [plain.clone(), gz(&plain), zipped] {
        let (folder, result) = tried(&bytes, &["set/"], "set/");
        assert_eq!(result.unwrap(), 4);
        let read = |name: &str| fs::read_to_string(folder.path().join("inside/into").join(name)).unwrap();
        assert_eq!((read("a.txt"), read("empty")), ("alpha".to_string(), String::new()));
        assert_eq!((read(&long[4..]), read("pax/name.txt")), ("beta".to_string(), "gamma".to_string()));
    }
}

/// A file that only an archive with an absolute path could write.
fn outside() -> PathBuf {
    std::env::temp_dir().join("stillhouse-evil.txt")
}

fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let file = Entry::file("a.txt", b"alpha");
    let of = |name: &str| Entry::file(name, b"x");
    let zipped = |entry: ZipEntry| zip(&[ZipEntry::file("first.txt", b"1"), entry]);
    let z = ZipEntry::file("a.txt", b"alpha");
    let whole = tar(&[file.clone(), of("b.txt")]);
    let mut damaged = gz(&tar(&[Entry::file("a.txt", &[7; 5000])]));
    let middle = damaged.len() - 6;
    damaged[middle] ^= 0x55;
    let zeros = vec![0u8; 80 << 20];
    vec![
        ("a parent path", tar(&[of("../evil.txt")]), "outside of the target"),
        ("a parent path in the middle", tar(&[of("a/../../evil.txt")]), "outside of the target"),
        ("absolute", tar(&[of(&outside().to_string_lossy())]), "outside of the target"),
        ("backslashes", tar(&[of("..\\evil.txt")]), "outside of the target"),
        ("a drive", tar(&[of("C:evil.txt")]), "outside of the target"),
        (
            "a parent path in a long name",
            tar(&[Entry { kind: b'L', ..Entry::file("l", b"../../evil.txt\0") }, of("x")]),
            "outside of the target",
        ),
        (
            "a parent path in an extended header",
            tar(&[Entry { kind: b'x', ..Entry::file("p", b"23 path=../../evil.txt\n") }, of("x")]),
            "outside of the target",
        ),
        ("a parent path in a zip", zipped(ZipEntry::file("../evil.txt", b"x")), "outside of the target"),
        ("a symbolic link", tar(&[Entry::of("l", b'2', "/etc"), of("l/evil.txt")]), "a symbolic link"),
        ("a hard link", tar(&[Entry::of("l", b'1', "/etc/passwd")]), "a hard link"),
        ("a device", tar(&[Entry::of("d", b'3', "")]), "a device"),
        ("a pipe", tar(&[Entry::of("p", b'6', "")]), "a device or pipe"),
        (
            "a symbolic link in a zip",
            zipped(ZipEntry { mode: 0o120_777, ..ZipEntry::file("l", b"/etc/passwd") }),
            "a symbolic link",
        ),
        (
            "a bomb in gzip",
            gz(&tar(&[Entry::file("zeros", &zeros)])),
            "the limit for an archive of this size",
        ),
        (
            "a bomb in gzip that is not extracted",
            gz(&tar(&[Entry::file("skip/zeros", &zeros), of("a")])),
            "the limit for an archive of this size",
        ),
        ("a bomb in a zip", zipped(ZipEntry::file("zeros", &zeros)), "the limit for an archive of this size"),
        (
            "a zip that claims too little",
            zipped(ZipEntry { claims: Some(3), ..z.clone() }),
            "larger than its declared",
        ),
        ("a zip that claims too much", zipped(ZipEntry { claims: Some(9), ..z.clone() }), "expected 9 bytes"),
        (
            "a tar that claims too much",
            tar(&[Entry { claims: Some(b"00000077777\0"), ..file.clone() }]),
            "expected",
        ),
        (
            "a tar that claims an overflowing size",
            tar(&[Entry {
                claims: Some(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]),
                ..file.clone()
            }]),
            "the limit for an archive",
        ),
        (
            "a tar that claims an invalid size",
            tar(&[Entry { claims: Some(b"lots\0\0\0\0\0\0\0\0"), ..file.clone() }]),
            "without size",
        ),
        ("a corrupt header", tar(&[file.clone(), Entry { sound: false, ..of("b") }]), "corrupt header"),
        ("truncated", whole[..1300].to_vec(), "truncated"),
        ("a truncated zip", zipped(z.clone())[..60].to_vec(), "corrupt archive"),
        ("a wrong checksum in gzip", damaged, "corrupt data"),
        ("a wrong checksum in a zip", zipped(ZipEntry { crc: Some(1), ..z.clone() }), "checksum"),
        ("a duplicate entry", tar(&[file.clone(), file.clone()]), "duplicate"),
        ("an entry over a folder", tar(&[of("a/b"), of("a")]), ""),
        (
            "shared data",
            zip(&[z.clone(), ZipEntry { shares: true, ..ZipEntry::file("b.txt", b"alpha") }]),
            "overlapping",
        ),
        ("encrypted", zipped(ZipEntry { flags: 1, ..z.clone() }), "Password required"),
        ("another method", zipped(ZipEntry { method: Some(12), ..z }), "method"),
        ("a name that is not text", tar(&[Entry { name: b"\xff\xfe".to_vec(), ..file }]), "not UTF-8"),
        ("a page", b"<html><body>Sign in</body></html>".to_vec(), "not an archive"),
        ("nothing", Vec::new(), "not an archive"),
        ("an empty zip", zip(&[]), "no file"),
    ]
}

#[test]
fn rejects_malicious_archives() {
    let all = hostile();
    assert!(all.len() >= 25);
    for (name, bytes, word) in all {
        let take: &[&str] = if name.contains("not taken") { &["a"] } else { &[] };
        let (_folder, result) = tried(&bytes, take, "");
        let error = result.expect_err(name);
        let text = error.to_string();
        assert!(matches!(error, Error::Archive { .. } | Error::Io { .. }), "{name}: {text}");
        assert!(text.contains(word), "{name}: {text}");
        assert!(text.contains("set.archive") || matches!(error, Error::Io { .. }), "{name}: {text}");
    }
    assert!(!outside().exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(fixtures::cases(200)))]

    #[test]
    fn accepts_or_rejects_damaged_archives(
        which in 0usize..3,
        changes in prop::collection::vec((0usize..1 << 14, 0u8..=255), 1..8),
        cut in prop::option::of(0.0f64..1.0),
    ) {
        let plain = tar(&[Entry::file("a/b.txt", &[65; 700]), Entry { kind: b'x', ..Entry::file("p", b"14 path=a/c.t\n") }, Entry::file("c", b"x")]);
        let mut bytes = match which {
            0 => plain,
            1 => gz(&plain),
            _ => zip(&[ZipEntry::file("a/b.txt", &[66; 700]), ZipEntry { deflate: false, ..ZipEntry::file("c", b"x") }]),
        };
        for (offset, value) in changes {
            let offset = offset % bytes.len();
            bytes[offset] = value;
        }
        if let Some(part) = cut {
            bytes.truncate((bytes.len() as f64 * part) as usize);
        }
        let (_folder, result) = tried(&bytes, &[], "");
        drop(result);
    }
}
