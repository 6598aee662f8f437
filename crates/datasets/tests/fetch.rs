//! Fetching, against a server on the loopback that imitates the hub and a plain host.

mod fixtures;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fixtures::archives::{Entry, ZipEntry, gz, tar, zip};
use fixtures::{jpeg, put};
use stillhouse_core::fs::sha256;
use stillhouse_datasets::fetch::{Fetch, Fetched, Progress, RECORD, fetch, fetch_manifest};
use stillhouse_datasets::manifest::Manifest;
use stillhouse_datasets::{Error, Result};

/// A file that the server gives, and how.
#[derive(Clone, Default)]
struct Page {
    body: Vec<u8>,
    kind: &'static str,
    status: u16,
    headers: Vec<(&'static str, String)>,
    /// How many bytes the first answers give before the line breaks; then all is well.
    cuts: Vec<usize>,
    /// Answers of another status before all is well.
    refusals: Vec<(u16, Option<&'static str>)>,
    /// No length and no ranges.
    plain: bool,
    pause: Duration,
}

impl Page {
    fn file(body: Vec<u8>) -> Self {
        let tag = format!("\"{}\"", sha256(&body));
        Self {
            body,
            kind: "application/octet-stream",
            status: 200,
            headers: vec![("ETag", tag)],
            ..Self::default()
        }
    }

    fn json(text: String) -> Self {
        Self { kind: "application/json", ..Self::file(text.into_bytes()) }
    }

    fn status(status: u16) -> Self {
        Self { status, ..Self::file(b"{\"error\":\"no\"}".to_vec()) }
    }
}

/// What was asked for.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    headers: BTreeMap<String, String>,
}

struct Server {
    address: String,
    pages: Arc<Mutex<BTreeMap<String, Page>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (pages, asked) =
            (Arc::<Mutex<BTreeMap<String, Page>>>::default(), Arc::<Mutex<Vec<Asked>>>::default());
        let stop = Arc::new(AtomicBool::new(false));
        let all = (Arc::clone(&pages), Arc::clone(&asked), Arc::clone(&stop));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if all.2.load(Ordering::Relaxed) {
                    return;
                }
                let (pages, asked) = (Arc::clone(&all.0), Arc::clone(&all.1));
                std::thread::spawn(move || drop(answer(&stream, &pages, &asked)));
            }
        });
        Self { address, pages, asked, stop }
    }

    fn give(&self, path: &str, page: Page) {
        self.pages.lock().unwrap().insert(path.to_string(), page);
    }

    fn asked(&self, path: &str) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().filter(|a| a.path == path).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address.trim_start_matches("http://")));
    }
}

fn answer(
    stream: &TcpStream,
    pages: &Mutex<BTreeMap<String, Page>>,
    asked: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_string());
    }
    asked.lock().unwrap().push(Asked { path: path.clone(), headers: headers.clone() });
    let (mut page, cut, refusal) = match pages.lock().unwrap().get_mut(&path) {
        Some(page) => {
            let cut = (!page.cuts.is_empty()).then(|| page.cuts.remove(0));
            let refusal = (!page.refusals.is_empty()).then(|| page.refusals.remove(0));
            (page.clone(), cut, refusal)
        }
        None => (Page::status(404), None, None),
    };
    if let Some((status, after)) = refusal {
        page = Page::status(status);
        page.headers.extend(after.map(|a| ("Retry-After", a.to_string())));
    }
    std::thread::sleep(page.pause);
    let mut stream = stream;
    let tag = page.headers.iter().find(|h| h.0 == "ETag").map(|h| h.1.clone());
    let range =
        headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let same = headers.get("if-range").is_none_or(|r| Some(r) == tag.as_ref());
    let (status, from) = match range {
        Some(from) if same && !page.plain && page.status == 200 && from < page.body.len() => (206, from),
        Some(from) if same && !page.plain && page.status == 200 => {
            let text = format!(
                "HTTP/1.1 416 Range\r\nContent-Range: bytes */{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                page.body.len()
            );
            assert!(from >= page.body.len());
            return stream.write_all(text.as_bytes());
        }
        _ => (page.status, 0),
    };
    let mut head = format!("HTTP/1.1 {status} Said\r\nContent-Type: {}\r\nConnection: close\r\n", page.kind);
    if !page.plain {
        head.push_str(&format!("Content-Length: {}\r\n", page.body.len() - from));
    }
    if status == 206 {
        let total = page.body.len();
        head.push_str(&format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1));
    }
    for (name, value) in &page.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    let body = &page.body[from..];
    stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])?;
    stream.flush()
}

fn how(server: &Server, root: &Path) -> Fetch {
    Fetch {
        root: root.to_path_buf(),
        endpoint: server.address.clone(),
        token: None,
        offline: false,
        keep: false,
        tries: 4,
        pause: Duration::from_millis(5),
    }
}

fn manifest(sources: &str) -> Manifest {
    let text = format!(
        "name = \"tiny\"\ntitle = \"Tiny\"\nlicense = \"none\"\nfolder = \"Tiny\"\nsources = [{sources}]\n"
    );
    toml::from_str(&text).unwrap()
}

fn quiet(manifest: &Manifest, how: &Fetch) -> Result<Fetched> {
    fetch_manifest(manifest, how, &|_| {})
}

/// A zip with two files, large enough to be cut.
fn archive() -> Vec<u8> {
    let noise: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    zip(&[
        ZipEntry { deflate: false, ..ZipEntry::file("tiny/a.bin", &noise) },
        ZipEntry::file("tiny/b.txt", b"beta"),
    ])
}

const HUB: &str = "/datasets/acme/tiny/resolve/main/tiny.zip";

fn of_hub(extra: &str) -> Manifest {
    manifest(&format!(
        "{{ kind = \"hub\", id = \"acme/tiny\", content = \"\", file = \"tiny.zip\", take = [\"tiny/\"], strip = \"tiny/\", fetch = true{extra} }}"
    ))
}

/// No set, nothing but the work folder.
fn nothing_visible(root: &Path) {
    let names: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| n == ".fetch"), "{names:?}");
}

fn whole_but_for_downloads(root: &Path) {
    assert_eq!(fs::read(root.join("Tiny/b.txt")).unwrap(), b"beta");
    assert_eq!(fs::metadata(root.join("Tiny/a.bin")).unwrap().len(), 300_000);
    assert!(root.join("Tiny").join(RECORD).is_file());
}

fn whole(root: &Path) {
    whole_but_for_downloads(root);
    assert!(!root.join(".fetch/tiny/downloads").exists(), "the archives are gone");
}

#[test]
fn an_archive_of_the_hub() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let bytes = archive();
    server.give(HUB, Page::file(bytes.clone()));
    let hash = sha256(&bytes);
    let set = of_hub(&format!(", sha256 = \"{hash}\", size = {}", bytes.len()));
    let bars = Mutex::new(Vec::new());
    let tell = |p: Progress| bars.lock().unwrap().push(p);
    let done = fetch_manifest(&set, &how(&server, root.path()), &tell).unwrap();
    whole(root.path());
    assert!(!done.was_there && done.from[0].verified);
    assert_eq!(done.from[0].sha256.as_deref(), Some(hash.as_str()));
    let bars = bars.into_inner().unwrap();
    assert_eq!(bars[0], Progress::Begin("tiny.zip".to_string(), Some(bytes.len() as u64)));
    let counted: u64 = bars.iter().map(|p| if let Progress::More(n) = p { *n } else { 0 }).sum();
    assert_eq!(counted, bytes.len() as u64);
    assert!(quiet(&set, &how(&server, root.path())).unwrap().was_there);
    assert_eq!(server.asked(HUB).len(), 1);
}

#[test]
fn parts_from_a_plain_host_and_a_second_source() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let images = gz(&tar(&[Entry::file("x/images/1.jpg", b"one")]));
    server.give("/images.tgz", Page { plain: true, ..Page::file(images) });
    server.give(
        "/lists.tar",
        Page::file(tar(&[Entry::file("lists/train.txt", b"1"), Entry::file("junk", b"2")])),
    );
    let url = &server.address;
    let set = manifest(&format!(
        "{{ kind = \"archive\", id = \"gone.tgz\", content = \"\", url = \"{url}/gone.tgz\", take = [\"x/\"], strip = \"x/\", part = \"images\", fetch = true }},
         {{ kind = \"archive\", id = \"images.tgz\", content = \"\", url = \"{url}/images.tgz\", take = [\"x/\"], strip = \"x/\", part = \"images\", fetch = true }},
         {{ kind = \"archive\", id = \"lists.tar\", content = \"\", url = \"{url}/lists.tar\", take = [\"lists/\"], part = \"lists\", fetch = true }}"
    ));
    let done = quiet(&set, &how(&server, root.path())).unwrap();
    assert_eq!(fs::read(root.path().join("Tiny/images/1.jpg")).unwrap(), b"one");
    assert_eq!(fs::read(root.path().join("Tiny/lists/train.txt")).unwrap(), b"1");
    assert!(!root.path().join("Tiny/junk").exists());
    assert_eq!(done.from.iter().map(|o| o.verified).collect::<Vec<_>>(), [false, false]);
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn repository(server: &Server) -> Manifest {
    server.give(
        "/api/datasets/acme/tiny/revision/main",
        Page::json(format!("{{\"id\":\"acme/tiny\",\"sha\":\"{COMMIT}\"}}")),
    );
    let mut lists = [Vec::new(), Vec::new()];
    for n in 0..20 {
        let body = jpeg(16, 16, n);
        let path = format!("data/a class/{n:02}.jpg");
        let lfs = format!(", \"lfs\":{{\"oid\":\"{}\",\"size\":{}}}", sha256(&body), body.len());
        lists[n / 12].push(format!(
            "{{\"type\":\"file\",\"oid\":\"x\",\"size\":{},\"path\":\"{path}\"{lfs}}}",
            body.len()
        ));
        server.give(
            &format!("/datasets/acme/tiny/resolve/{COMMIT}/data/a%20class/{n:02}.jpg"),
            Page::file(body),
        );
    }
    lists[0].push("{\"type\":\"directory\",\"oid\":\"x\",\"size\":0,\"path\":\"data/a class\"}".to_string());
    lists[1].push("{\"type\":\"file\",\"oid\":\"x\",\"size\":5,\"path\":\"README.md\"}".to_string());
    let tree = format!("/api/datasets/acme/tiny/tree/{COMMIT}?recursive=true");
    let next = format!("<{}{tree}&cursor=2>; rel=\"next\"", server.address);
    let mut first = Page::json(format!("[{}]", lists[0].join(",")));
    first.headers.push(("Link", next));
    server.give(&tree, first);
    server.give(&format!("{tree}&cursor=2"), Page::json(format!("[{}]", lists[1].join(","))));
    manifest(
        "{ kind = \"hub\", id = \"acme/tiny\", content = \"\", take = [\"data/\"], strip = \"data/\", fetch = true }",
    )
}

#[test]
fn a_repository_file_by_file() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let set = repository(&server);
    let done = quiet(&set, &how(&server, root.path())).unwrap();
    assert_eq!(done.from[0].revision.as_deref(), Some(COMMIT));
    assert!(done.from[0].verified);
    let names = fs::read_dir(root.path().join("Tiny/a class")).unwrap().count();
    assert_eq!(names, 20);
    assert_eq!(fs::read(root.path().join("Tiny/a class/19.jpg")).unwrap(), jpeg(16, 16, 19));
    // A file whose bytes are others than the listing says.
    let root = tempfile::tempdir().unwrap();
    server.give(
        &format!("/datasets/acme/tiny/resolve/{COMMIT}/data/a%20class/07.jpg"),
        Page::file(jpeg(16, 16, 99)),
    );
    let e = quiet(&set, &how(&server, root.path())).unwrap_err().to_string();
    assert!(e.contains("07.jpg"), "{e}");
    nothing_visible(root.path());
    // A listing that climbs out.
    let page = "[{\"type\":\"file\",\"oid\":\"x\",\"size\":1,\"path\":\"data/../../evil.jpg\"}]";
    server
        .give(&format!("/api/datasets/acme/tiny/tree/{COMMIT}?recursive=true"), Page::json(page.to_string()));
    let e = quiet(&set, &how(&server, root.path())).unwrap_err().to_string();
    assert!(e.contains("evil.jpg") && e.contains("leaves"), "{e}");
    nothing_visible(root.path());
}

/// Tables of a repository become class folders.
#[test]
fn tables_of_the_hub() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    server.give("/api/datasets/acme/tiny/revision/main", Page::json(format!("{{\"sha\":\"{COMMIT}\"}}")));
    let read =
        |name: &str| fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap();
    let mut list = Vec::new();
    for (to, from) in
        [("data/train-00000-of-00002.parquet", "snappy"), ("data/train-00001-of-00002.parquet", "gzip")]
    {
        let body = read(&format!("{from}.parquet"));
        let lfs = format!("{{\"oid\":\"{}\",\"size\":{}}}", sha256(&body), body.len());
        list.push(format!("{{\"type\":\"file\",\"size\":{},\"path\":\"{to}\",\"lfs\":{lfs}}}", body.len()));
        server.give(&format!("/datasets/acme/tiny/resolve/{COMMIT}/{to}"), Page::file(body));
    }
    let tree = format!("/api/datasets/acme/tiny/tree/{COMMIT}?recursive=true");
    server.give(&tree, Page::json(format!("[{}]", list.join(","))));
    let source = "{ kind = \"hub\", id = \"acme/tiny\", content = \"\", take = [\"data/\"], strip = \"data/\", parquet = true, fetch = true }";
    let mut set = manifest(source);
    let rsc11 = stillhouse_datasets::manifest::find("rsc11").unwrap();
    (set.classes, set.folder) = (rsc11.classes.clone(), "RS_C11_Database".to_string());
    quiet(&set, &how(&server, root.path())).unwrap();
    let report = stillhouse_datasets::check(&fixtures::request("rsc11", root.path()), true).unwrap();
    // Both tables have the same twelve rows: the labels 0 to 10, and 0 again.
    assert_eq!((report.images, report.classes[0].found, report.duplicates.len()), (24, 4, 12), "{report}");
    assert!(root.path().join("RS_C11_Database/storage tanks/00022.png").is_file());
    // A label that no class has.
    set.classes.truncate(4);
    let root = tempfile::tempdir().unwrap();
    let e = quiet(&set, &how(&server, root.path())).unwrap_err().to_string();
    assert!(e.contains("train-00000-of-00002.parquet") && e.contains("label 4 in row 4"), "{e}");
    nothing_visible(root.path());
}

#[test]
fn a_cut_download_goes_on() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let bytes = archive();
    server.give(HUB, Page { cuts: vec![100_000, 50_000], ..Page::file(bytes.clone()) });
    let set = of_hub(&format!(", sha256 = \"{}\"", sha256(&bytes)));
    quiet(&set, &how(&server, root.path())).unwrap();
    whole(root.path());
    let ranges: Vec<Option<String>> =
        server.asked(HUB).iter().map(|a| a.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_string()), Some("bytes=150000-".to_string())]);
}

#[test]
fn a_later_start_goes_on() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let bytes = archive();
    let set = of_hub(&format!(", sha256 = \"{}\"", sha256(&bytes)));
    let once = Fetch { tries: 1, ..how(&server, root.path()) };
    server.give(HUB, Page { cuts: vec![100_000], ..Page::file(bytes.clone()) });
    let e = quiet(&set, &once).unwrap_err().to_string();
    assert!(e.contains("cut off after 100000") && e.contains("goes on"), "{e}");
    nothing_visible(root.path());
    quiet(&set, &once).unwrap();
    whole(root.path());
    assert_eq!(server.asked(HUB)[1].headers["range"], "bytes=100000-");
}

#[test]
fn a_file_that_changed_meanwhile_begins_anew() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let bytes = archive();
    let set = of_hub(&format!(", sha256 = \"{}\"", sha256(&bytes)));
    let once = Fetch { tries: 1, ..how(&server, root.path()) };
    let mut old = bytes.clone();
    old[10] ^= 1;
    server.give(HUB, Page { cuts: vec![100_000], ..Page::file(old) });
    quiet(&set, &once).unwrap_err();
    server.give(HUB, Page::file(bytes));
    quiet(&set, &once).unwrap();
    whole(root.path());
}

#[test]
fn wrong_bytes_are_thrown_away() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let bytes = archive();
    let mut other = bytes.clone();
    other[1000] ^= 1;
    server.give(HUB, Page::file(other));
    for (extra, word) in [
        (format!(", sha256 = \"{}\"", sha256(&bytes)), "SHA-256"),
        (", md5 = \"00000000000000000000000000000000\"".to_string(), "MD5"),
        (format!(", size = {}", bytes.len() + 1), "size"),
    ] {
        let e = quiet(&of_hub(&extra), &how(&server, root.path())).unwrap_err().to_string();
        assert!(e.contains(word) && e.contains("expected") && e.contains(HUB), "{e}");
        nothing_visible(root.path());
        let left = fs::read_dir(root.path().join(".fetch/tiny/downloads")).unwrap().count();
        assert_eq!(left, 0, "{word}");
    }
    server.give(HUB, Page::file(bytes));
    quiet(&of_hub(""), &how(&server, root.path())).unwrap();
    whole(root.path());
}

#[test]
fn a_page_in_place_of_the_archive() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let page = b"<!DOCTYPE html><html><body>Sign in</body></html>".to_vec();
    for kind in ["text/html; charset=utf-8", "application/zip"] {
        server.give(HUB, Page { kind, ..Page::file(page.clone()) });
        let e = quiet(&of_hub(""), &how(&server, root.path())).unwrap_err().to_string();
        assert!(e.contains("a page") && e.contains("in place of the archive"), "{e}");
        nothing_visible(root.path());
    }
    assert_eq!(server.asked(HUB).len(), 2, "another try is of no use");
}

#[test]
fn refusals_say_what_to_do() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let set = of_hub("");
    let plain = how(&server, root.path());
    let with_token = Fetch { token: Some("hf_secret".to_string()), ..plain.clone() };
    let error = |status: u16, how: &Fetch| {
        server.give(HUB, Page::status(status));
        let e = quiet(&set, how).unwrap_err().to_string();
        nothing_visible(root.path());
        e
    };
    assert!(error(404, &plain).contains("no such file"));
    let e = error(401, &plain);
    assert!(e.contains("HF_TOKEN") && e.contains("accept the terms"), "{e}");
    let e = error(403, &with_token);
    assert!(e.contains("does not let this token in") && !e.contains("hf_secret"), "{e}");
    assert_eq!(server.asked(HUB).last().unwrap().headers["authorization"], "Bearer hf_secret");
    assert_eq!(server.asked(HUB).len(), 3);
    // A redirect to another host is followed without the token.
    let other = Server::new();
    other.give("/blob", Page::file(archive()));
    let moved = Page {
        status: 302,
        headers: vec![("Location", format!("{}/blob", other.address.replace("127.0.0.1", "localhost")))],
        ..Page::default()
    };
    server.give(HUB, moved);
    quiet(&set, &with_token).unwrap();
    whole(root.path());
    assert!(!other.asked("/blob")[0].headers.contains_key("authorization"));
    let bad = Fetch { token: Some("two words".to_string()), ..plain };
    let root = tempfile::tempdir().unwrap();
    assert!(
        quiet(&set, &Fetch { root: root.path().to_path_buf(), ..bad })
            .unwrap_err()
            .to_string()
            .contains("HF_TOKEN")
    );
}

#[test]
fn a_limit_of_requests_is_waited_for() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    server.give(HUB, Page { refusals: vec![(429, Some("0")), (503, None)], ..Page::file(archive()) });
    quiet(&of_hub(""), &how(&server, root.path())).unwrap();
    whole(root.path());
    assert_eq!(server.asked(HUB).len(), 3);
    let root = tempfile::tempdir().unwrap();
    server.give(HUB, Page { refusals: vec![(429, Some("0")); 9], ..Page::file(archive()) });
    let e = quiet(&of_hub(""), &how(&server, root.path())).unwrap_err().to_string();
    assert!(e.contains("429") && e.contains("4 tries"), "{e}");
    nothing_visible(root.path());
}

/// Two processes at once: one downloads, the other waits, and whoever looks sees no set or the
/// whole of it.
#[test]
fn two_processes_download_once() {
    const CHILD: &str = "STILLHOUSE_TEST_FETCH";
    let set = of_hub("");
    if let Ok(child) = std::env::var(CHILD) {
        let (address, root) = child.split_once(' ').unwrap();
        let how = Fetch {
            root: PathBuf::from(root),
            endpoint: address.to_string(),
            token: None,
            offline: false,
            keep: false,
            tries: 1,
            pause: Duration::ZERO,
        };
        println!("was there: {}", quiet(&set, &how).unwrap().was_there);
        return;
    }
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    server.give(HUB, Page { pause: Duration::from_millis(500), ..Page::file(archive()) });
    let start = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "two_processes_download_once", "--nocapture"])
            .env(CHILD, format!("{} {}", server.address, root.path().display()))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut children = [start(), start()];
    let mut looks = 0;
    while children.iter_mut().any(|c| c.try_wait().unwrap().is_none()) {
        if root.path().join("Tiny").exists() {
            whole_but_for_downloads(root.path());
        } else {
            looks += 1;
        }
        // It may have come since.
        let names = fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name());
        assert!(names.into_iter().all(|n| n == ".fetch" || n == "Tiny"));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(looks > 0, "it was there before anybody looked");
    let mut said: Vec<String> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().filter_map(|l| l.split_once("was there: ")).map(|l| l.1.to_string()).collect()
        })
        .collect();
    said.sort();
    assert_eq!(said, ["false", "true"]);
    whole(root.path());
    assert_eq!(server.asked(HUB).len(), 1);
}

#[test]
fn offline_asks_nobody() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    server.give(HUB, Page::file(archive()));
    let offline = Fetch { offline: true, ..how(&server, root.path()) };
    let e = quiet(&of_hub(""), &offline).unwrap_err().to_string();
    assert!(e.contains("HF_HUB_OFFLINE") && e.contains("Tiny"), "{e}");
    assert!(server.asked.lock().unwrap().is_empty());
    quiet(&of_hub(""), &how(&server, root.path())).unwrap();
    assert!(quiet(&of_hub(""), &offline).unwrap().was_there);
}

#[test]
fn a_hostile_archive_leaves_nothing() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    server.give(
        HUB,
        Page::file(zip(&[ZipEntry::file("tiny/a", b"a"), ZipEntry::file("tiny/../../../evil", b"x")])),
    );
    let e = quiet(&of_hub(""), &how(&server, root.path())).unwrap_err();
    assert!(matches!(e, Error::Archive { .. }), "{e}");
    nothing_visible(root.path());
}

#[test]
fn sets_behind_a_login_say_so() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    for (name, words) in
        [("cityscapes", ["register", "gtFine"]), ("nabirds", ["accept the terms", "allaboutbirds"])]
    {
        let e = fetch(name, &how(&server, root.path()), &|_| {}).unwrap_err();
        assert!(matches!(e, Error::Access { .. }) && words.iter().all(|w| e.to_string().contains(w)), "{e}");
    }
    let e = fetch("scenes", &how(&server, root.path()), &|_| {}).unwrap_err().to_string();
    assert!(e.contains("nothing to fetch"), "{e}");
    // A set that a person put there is left alone.
    put(&root.path().join("cityscapes/mine.txt"), "x");
    assert!(fetch("cityscapes", &how(&server, root.path()), &|_| {}).unwrap().was_there);
    assert!(server.asked.lock().unwrap().is_empty());
}

/// A disk without room: nothing is seen of the set, and with room again the download goes on.
#[test]
fn a_full_disk() {
    let (server, folder) = (Server::new(), tempfile::tempdir().unwrap());
    let Some(disk) = SmallDisk::mount(folder.path(), "200k") else { return };
    server.give(HUB, Page::file(archive()));
    let e = quiet(&of_hub(""), &how(&server, folder.path())).unwrap_err().to_string();
    assert!(e.contains("No space left") && e.contains("tiny.zip"), "{e}");
    nothing_visible(folder.path());
    // Room for the archive, not for what is in it.
    disk.resize("400k");
    let e = quiet(&of_hub(""), &how(&server, folder.path())).unwrap_err().to_string();
    assert!(e.contains("No space left") && e.contains("a.bin"), "{e}");
    nothing_visible(folder.path());
    assert!(server.asked(HUB)[1].headers.contains_key("range"));
    disk.resize("4m");
    quiet(&of_hub(""), &how(&server, folder.path())).unwrap();
    whole(folder.path());
    assert_eq!(server.asked(HUB).len(), 2);
}

/// A mounted tmpfs, where this may be done; taken away at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        let option = format!("size={size}");
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &option, "tmpfs"])
            .arg(at)
            .output();
        mount.is_ok_and(|m| m.status.success()).then(|| Self(at.to_path_buf()))
    }

    fn resize(&self, size: &str) {
        let option = format!("remount,size={size}");
        let status = std::process::Command::new("mount").args(["-o", &option]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
