//! Downloads, against a local server that imitates the hub and a plain host.

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
use stillhouse_datasets::fetch::{Fetch, Fetched, Progress, RECORD, fetch};
use stillhouse_datasets::manifest::Manifest;
use stillhouse_datasets::{Error, Result};

/// A response of the server.
#[derive(Clone, Default)]
struct Page {
    body: Vec<u8>,
    kind: &'static str,
    status: u16,
    headers: Vec<(&'static str, String)>,
    /// Bytes that the first responses send before the connection breaks.
    interruptions: Vec<usize>,
    /// Status and `Retry-After` of the first responses.
    rejections: Vec<(u16, Option<&'static str>)>,
    /// Without content length and ranges.
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

/// A received request.
#[derive(Clone, Debug)]
struct Request {
    path: String,
    headers: BTreeMap<String, String>,
}

struct Server {
    address: String,
    pages: Arc<Mutex<BTreeMap<String, Page>>>,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (pages, requests) =
            (Arc::<Mutex<BTreeMap<String, Page>>>::default(), Arc::<Mutex<Vec<Request>>>::default());
        let stop = Arc::new(AtomicBool::new(false));
        let all = (Arc::clone(&pages), Arc::clone(&requests), Arc::clone(&stop));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if all.2.load(Ordering::Relaxed) {
                    return;
                }
                let (pages, requests) = (Arc::clone(&all.0), Arc::clone(&all.1));
                std::thread::spawn(move || drop(answer(&stream, &pages, &requests)));
            }
        });
        Self { address, pages, requests, stop }
    }

    fn serve(&self, path: &str, page: Page) {
        self.pages.lock().unwrap().insert(path.to_string(), page);
    }

    fn requests(&self, path: &str) -> Vec<Request> {
        self.requests.lock().unwrap().iter().filter(|a| a.path == path).cloned().collect()
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
    requests: &Mutex<Vec<Request>>,
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
    requests.lock().unwrap().push(Request { path: path.clone(), headers: headers.clone() });
    let (mut page, cut, refusal) = match pages.lock().unwrap().get_mut(&path) {
        Some(page) => {
            let cut = (!page.interruptions.is_empty()).then(|| page.interruptions.remove(0));
            let refusal = (!page.rejections.is_empty()).then(|| page.rejections.remove(0));
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

fn config(server: &Server, root: &Path) -> Fetch {
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
        "name = \"tiny\"\ntitle = \"Tiny\"\nsummary = \"test\"\nlicense = \"none\"\nfetch_into = \"Tiny\"\n\
         sources = [{sources}]\n"
    );
    Manifest::parse(&text, "tiny.toml").unwrap()
}

fn quiet(manifest: &Manifest, config: &Fetch) -> Result<Fetched> {
    fetch(manifest, config, &|_| {})
}

/// A zip archive with two files, large enough to be interrupted.
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

/// Asserts that only the work folder exists.
fn assert_no_dataset(root: &Path) {
    let names: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| n == ".fetch"), "{names:?}");
}

fn assert_unpacked(root: &Path) {
    assert_eq!(fs::read(root.join("Tiny/b.txt")).unwrap(), b"beta");
    assert_eq!(fs::metadata(root.join("Tiny/a.bin")).unwrap().len(), 300_000);
    assert!(root.join("Tiny").join(RECORD).is_file());
}

fn assert_complete(root: &Path) {
    assert_unpacked(root);
    assert!(!root.join(".fetch/tiny/downloads").exists(), "the archives are removed");
}

#[test]
fn downloads_an_archive_of_the_hub() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let bytes = archive();
    server.serve(HUB, Page::file(bytes.clone()));
    let hash = sha256(&bytes);
    let set = of_hub(&format!(", sha256 = \"{hash}\", size = {}", bytes.len()));
    let events = Mutex::new(Vec::new());
    let progress = |event: Progress| events.lock().unwrap().push(event);
    let done = fetch(&set, &config(&server, root.path()), &progress).unwrap();
    assert_complete(root.path());
    assert!(!done.already_present && done.from[0].verified);
    assert_eq!(done.from[0].sha256.as_deref(), Some(hash.as_str()));
    let events = events.into_inner().unwrap();
    assert_eq!(events[0], Progress::Started("tiny.zip".to_string(), Some(bytes.len() as u64)));
    let counted: u64 = events.iter().map(|p| if let Progress::Advanced(n) = p { *n } else { 0 }).sum();
    assert_eq!(counted, bytes.len() as u64);
    assert!(quiet(&set, &config(&server, root.path())).unwrap().already_present);
    assert_eq!(server.requests(HUB).len(), 1);
}

#[test]
fn downloads_all_parts_and_falls_back_to_the_second_source() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let images = gz(&tar(&[Entry::file("x/images/1.jpg", b"one")]));
    server.serve("/images.tgz", Page { plain: true, ..Page::file(images) });
    server.serve(
        "/lists.tar",
        Page::file(tar(&[Entry::file("lists/train.txt", b"1"), Entry::file("junk", b"2")])),
    );
    let url = &server.address;
    let set = manifest(&format!(
        "{{ kind = \"archive\", id = \"gone.tgz\", content = \"\", url = \"{url}/gone.tgz\", take = [\"x/\"], strip = \"x/\", part = \"images\", fetch = true }},
         {{ kind = \"archive\", id = \"images.tgz\", content = \"\", url = \"{url}/images.tgz\", take = [\"x/\"], strip = \"x/\", part = \"images\", fetch = true }},
         {{ kind = \"archive\", id = \"lists.tar\", content = \"\", url = \"{url}/lists.tar\", take = [\"lists/\"], part = \"lists\", fetch = true }}"
    ));
    let done = quiet(&set, &config(&server, root.path())).unwrap();
    assert_eq!(fs::read(root.path().join("Tiny/images/1.jpg")).unwrap(), b"one");
    assert_eq!(fs::read(root.path().join("Tiny/lists/train.txt")).unwrap(), b"1");
    assert!(!root.path().join("Tiny/junk").exists());
    assert_eq!(done.from.iter().map(|o| o.verified).collect::<Vec<_>>(), [false, false]);
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn repository(server: &Server) -> Manifest {
    server.serve(
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
        server.serve(
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
    server.serve(&tree, first);
    server.serve(&format!("{tree}&cursor=2"), Page::json(format!("[{}]", lists[1].join(","))));
    manifest(
        "{ kind = \"hub\", id = \"acme/tiny\", content = \"\", take = [\"data/\"], strip = \"data/\", fetch = true }",
    )
}

#[test]
fn downloads_a_repository_file_by_file() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let set = repository(&server);
    let done = quiet(&set, &config(&server, root.path())).unwrap();
    assert_eq!(done.from[0].revision.as_deref(), Some(COMMIT));
    assert!(done.from[0].verified);
    let names = fs::read_dir(root.path().join("Tiny/a class")).unwrap().count();
    assert_eq!(names, 20);
    assert_eq!(fs::read(root.path().join("Tiny/a class/19.jpg")).unwrap(), jpeg(16, 16, 19));
    // A file whose bytes are others than the listing says.
    let root = tempfile::tempdir().unwrap();
    server.serve(
        &format!("/datasets/acme/tiny/resolve/{COMMIT}/data/a%20class/07.jpg"),
        Page::file(jpeg(16, 16, 99)),
    );
    let e = quiet(&set, &config(&server, root.path())).unwrap_err().to_string();
    assert!(e.contains("07.jpg"), "{e}");
    assert_no_dataset(root.path());
    // A listing that climbs out.
    let page = "[{\"type\":\"file\",\"oid\":\"x\",\"size\":1,\"path\":\"data/../../evil.jpg\"}]";
    server.serve(
        &format!("/api/datasets/acme/tiny/tree/{COMMIT}?recursive=true"),
        Page::json(page.to_string()),
    );
    let e = quiet(&set, &config(&server, root.path())).unwrap_err().to_string();
    assert!(e.contains("evil.jpg") && e.contains("leaves"), "{e}");
    assert_no_dataset(root.path());
}

/// Tables of a repository become class folders.
#[test]
fn unpacks_parquet_tables() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    server.serve("/api/datasets/acme/tiny/revision/main", Page::json(format!("{{\"sha\":\"{COMMIT}\"}}")));
    let read =
        |name: &str| fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap();
    let mut list = Vec::new();
    for (to, from) in
        [("data/train-00000-of-00002.parquet", "snappy"), ("data/train-00001-of-00002.parquet", "gzip")]
    {
        let body = read(&format!("{from}.parquet"));
        let lfs = format!("{{\"oid\":\"{}\",\"size\":{}}}", sha256(&body), body.len());
        list.push(format!("{{\"type\":\"file\",\"size\":{},\"path\":\"{to}\",\"lfs\":{lfs}}}", body.len()));
        server.serve(&format!("/datasets/acme/tiny/resolve/{COMMIT}/{to}"), Page::file(body));
    }
    let tree = format!("/api/datasets/acme/tiny/tree/{COMMIT}?recursive=true");
    server.serve(&tree, Page::json(format!("[{}]", list.join(","))));
    let source = "{ kind = \"hub\", id = \"acme/tiny\", content = \"\", take = [\"data/\"], strip = \"data/\", parquet = true, fetch = true }";
    let mut set = manifest(source);
    let rsc11 = fixtures::manifest("rsc11");
    (set.classes, set.fetch_into) = (rsc11.classes.clone(), Some("RS_C11_Database".to_string()));
    quiet(&set, &config(&server, root.path())).unwrap();
    let report = stillhouse_datasets::check(&fixtures::request("rsc11", root.path()), true).unwrap();
    // Both tables have the same twelve rows: the labels 0 to 10, and 0 again.
    assert_eq!((report.images, report.classes[0].found, report.duplicates.len()), (24, 4, 12), "{report}");
    assert!(root.path().join("RS_C11_Database/storage tanks/00022.png").is_file());
    // A label out of range.
    set.classes.truncate(4);
    let root = tempfile::tempdir().unwrap();
    let e = quiet(&set, &config(&server, root.path())).unwrap_err().to_string();
    assert!(
        e.contains("train-00000-of-00002.parquet")
            && e.contains("row 4: expected a label from 0 to 3, found 4"),
        "{e}"
    );
    assert_no_dataset(root.path());
}

#[test]
fn resumes_an_interrupted_download() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let bytes = archive();
    server.serve(HUB, Page { interruptions: vec![100_000, 50_000], ..Page::file(bytes.clone()) });
    let set = of_hub(&format!(", sha256 = \"{}\"", sha256(&bytes)));
    quiet(&set, &config(&server, root.path())).unwrap();
    assert_complete(root.path());
    let ranges: Vec<Option<String>> =
        server.requests(HUB).iter().map(|a| a.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_string()), Some("bytes=150000-".to_string())]);
}

#[test]
fn resumes_in_a_later_start() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let bytes = archive();
    let set = of_hub(&format!(", sha256 = \"{}\"", sha256(&bytes)));
    let once = Fetch { tries: 1, ..config(&server, root.path()) };
    server.serve(HUB, Page { interruptions: vec![100_000], ..Page::file(bytes.clone()) });
    let e = quiet(&set, &once).unwrap_err().to_string();
    assert!(e.contains("interrupted after 100000") && e.contains("resume"), "{e}");
    assert_no_dataset(root.path());
    quiet(&set, &once).unwrap();
    assert_complete(root.path());
    assert_eq!(server.requests(HUB)[1].headers["range"], "bytes=100000-");
}

#[test]
fn restarts_if_the_file_changed() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let bytes = archive();
    let set = of_hub(&format!(", sha256 = \"{}\"", sha256(&bytes)));
    let once = Fetch { tries: 1, ..config(&server, root.path()) };
    let mut old = bytes.clone();
    old[10] ^= 1;
    server.serve(HUB, Page { interruptions: vec![100_000], ..Page::file(old) });
    quiet(&set, &once).unwrap_err();
    server.serve(HUB, Page::file(bytes));
    quiet(&set, &once).unwrap();
    assert_complete(root.path());
}

#[test]
fn removes_files_with_a_wrong_hash() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let bytes = archive();
    let mut other = bytes.clone();
    other[1000] ^= 1;
    server.serve(HUB, Page::file(other));
    for (extra, word) in [
        (format!(", sha256 = \"{}\"", sha256(&bytes)), "SHA-256"),
        (", md5 = \"00000000000000000000000000000000\"".to_string(), "MD5"),
        (format!(", size = {}", bytes.len() + 1), "size"),
    ] {
        let e = quiet(&of_hub(&extra), &config(&server, root.path())).unwrap_err().to_string();
        assert!(e.contains(word) && e.contains("expected") && e.contains(HUB), "{e}");
        assert_no_dataset(root.path());
        let left = fs::read_dir(root.path().join(".fetch/tiny/downloads")).unwrap().count();
        assert_eq!(left, 0, "{word}");
    }
    server.serve(HUB, Page::file(bytes));
    quiet(&of_hub(""), &config(&server, root.path())).unwrap();
    assert_complete(root.path());
}

#[test]
fn rejects_an_html_page_as_archive() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let page = b"<!DOCTYPE html><html><body>Sign in</body></html>".to_vec();
    for kind in ["text/html; charset=utf-8", "application/zip"] {
        server.serve(HUB, Page { kind, ..Page::file(page.clone()) });
        let e = quiet(&of_hub(""), &config(&server, root.path())).unwrap_err().to_string();
        assert!(e.contains("expected an archive, found a page"), "{e}");
        assert_no_dataset(root.path());
    }
    assert_eq!(server.requests(HUB).len(), 2, "not worth another attempt");
}

#[test]
fn reports_remedies_for_rejections() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    let set = of_hub("");
    let plain = config(&server, root.path());
    let with_token = Fetch { token: Some("hf_secret".to_string()), ..plain.clone() };
    let error = |status: u16, config: &Fetch| {
        server.serve(HUB, Page::status(status));
        let e = quiet(&set, config).unwrap_err().to_string();
        assert_no_dataset(root.path());
        e
    };
    assert!(error(404, &plain).contains("404"));
    let e = error(401, &plain);
    assert!(e.contains("HF_TOKEN") && e.contains("accept the terms"), "{e}");
    let e = error(403, &with_token);
    assert!(e.contains("rejects the token") && !e.contains("hf_secret"), "{e}");
    assert_eq!(server.requests(HUB).last().unwrap().headers["authorization"], "Bearer hf_secret");
    assert_eq!(server.requests(HUB).len(), 3);
    // A redirect to another host is followed without the token.
    let other = Server::new();
    other.serve("/blob", Page::file(archive()));
    let moved = Page {
        status: 302,
        headers: vec![("Location", format!("{}/blob", other.address.replace("127.0.0.1", "localhost")))],
        ..Page::default()
    };
    server.serve(HUB, moved);
    quiet(&set, &with_token).unwrap();
    assert_complete(root.path());
    assert!(!other.requests("/blob")[0].headers.contains_key("authorization"));
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
fn waits_after_too_many_requests() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    server.serve(HUB, Page { rejections: vec![(429, Some("0")), (503, None)], ..Page::file(archive()) });
    quiet(&of_hub(""), &config(&server, root.path())).unwrap();
    assert_complete(root.path());
    assert_eq!(server.requests(HUB).len(), 3);
    let root = tempfile::tempdir().unwrap();
    server.serve(HUB, Page { rejections: vec![(429, Some("0")); 9], ..Page::file(archive()) });
    let e = quiet(&of_hub(""), &config(&server, root.path())).unwrap_err().to_string();
    assert!(e.contains("429") && e.contains("4 attempts"), "{e}");
    assert_no_dataset(root.path());
}

/// Of two processes one downloads and the other waits; the dataset is absent or complete at any time.
#[test]
fn downloads_once_for_two_processes() {
    const CHILD: &str = "STILLHOUSE_TEST_FETCH";
    let set = of_hub("");
    if let Ok(child) = std::env::var(CHILD) {
        let (address, root) = child.split_once(' ').unwrap();
        let config = Fetch {
            root: PathBuf::from(root),
            endpoint: address.to_string(),
            token: None,
            offline: false,
            keep: false,
            tries: 1,
            pause: Duration::ZERO,
        };
        println!("already present: {}", quiet(&set, &config).unwrap().already_present);
        return;
    }
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    server.serve(HUB, Page { pause: Duration::from_millis(500), ..Page::file(archive()) });
    let start = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "downloads_once_for_two_processes", "--nocapture"])
            .env(CHILD, format!("{} {}", server.address, root.path().display()))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut children = [start(), start()];
    let mut absent = 0;
    while children.iter_mut().any(|c| c.try_wait().unwrap().is_none()) {
        if root.path().join("Tiny").exists() {
            assert_unpacked(root.path());
        } else {
            absent += 1;
        }
        // It may have appeared meanwhile.
        let names = fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name());
        assert!(names.into_iter().all(|n| n == ".fetch" || n == "Tiny"));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(absent > 0, "the dataset appeared before the first look");
    let mut printed: Vec<String> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().filter_map(|l| l.split_once("already present: ")).map(|l| l.1.to_string()).collect()
        })
        .collect();
    printed.sort();
    assert_eq!(printed, ["false", "true"]);
    assert_complete(root.path());
    assert_eq!(server.requests(HUB).len(), 1);
}

#[test]
fn sends_no_request_in_offline_mode() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    server.serve(HUB, Page::file(archive()));
    let offline = Fetch { offline: true, ..config(&server, root.path()) };
    let e = quiet(&of_hub(""), &offline).unwrap_err().to_string();
    assert!(e.contains("HF_HUB_OFFLINE") && e.contains("Tiny"), "{e}");
    assert!(server.requests.lock().unwrap().is_empty());
    quiet(&of_hub(""), &config(&server, root.path())).unwrap();
    assert!(quiet(&of_hub(""), &offline).unwrap().already_present);
}

#[test]
fn leaves_nothing_of_a_malicious_archive() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    server.serve(
        HUB,
        Page::file(zip(&[ZipEntry::file("tiny/a", b"a"), ZipEntry::file("tiny/../../../evil", b"x")])),
    );
    let e = quiet(&of_hub(""), &config(&server, root.path())).unwrap_err();
    assert!(matches!(e, Error::Archive { .. }), "{e}");
    assert_no_dataset(root.path());
}

#[test]
fn reports_manual_steps_for_restricted_datasets() {
    let (server, root) = (Server::new(), tempfile::tempdir().unwrap());
    for (name, words) in
        [("cityscapes", ["register", "gtFine"]), ("nabirds", ["accept the terms", "allaboutbirds"])]
    {
        let e = fetch(fixtures::manifest(name), &config(&server, root.path()), &|_| {}).unwrap_err();
        assert!(matches!(e, Error::Access { .. }) && words.iter().all(|w| e.to_string().contains(w)), "{e}");
    }
    let e =
        fetch(fixtures::manifest("scenes"), &config(&server, root.path()), &|_| {}).unwrap_err().to_string();
    assert!(e.contains("no source to download from"), "{e}");
    // An existing folder is not touched.
    put(&root.path().join("cityscapes/mine.txt"), "x");
    assert!(
        fetch(fixtures::manifest("cityscapes"), &config(&server, root.path()), &|_| {})
            .unwrap()
            .already_present
    );
    assert!(server.requests.lock().unwrap().is_empty());
}

/// A full disk leaves no dataset behind, and the download resumes once there is space.
#[test]
#[ignore = "mounts a tmpfs: run as root"]
fn resumes_after_a_full_disk() {
    let (server, folder) = (Server::new(), tempfile::tempdir().unwrap());
    let disk = SmallDisk::mount(folder.path(), "200k");
    server.serve(HUB, Page::file(archive()));
    let e = quiet(&of_hub(""), &config(&server, folder.path())).unwrap_err().to_string();
    assert!(e.contains("No space left") && e.contains("tiny.zip"), "{e}");
    assert_no_dataset(folder.path());
    // Enough for the archive, but not for its content.
    disk.resize("400k");
    let e = quiet(&of_hub(""), &config(&server, folder.path())).unwrap_err().to_string();
    assert!(e.contains("No space left") && e.contains("a.bin"), "{e}");
    assert_no_dataset(folder.path());
    assert!(server.requests(HUB)[1].headers.contains_key("range"));
    disk.resize("4m");
    quiet(&of_hub(""), &config(&server, folder.path())).unwrap();
    assert_complete(folder.path());
    assert_eq!(server.requests(HUB).len(), 2);
}

/// A mounted tmpfs; unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Self {
        let option = format!("size={size}");
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &option, "tmpfs"])
            .arg(at)
            .output()
            .unwrap();
        assert!(mount.status.success(), "{}", String::from_utf8_lossy(&mount.stderr));
        Self(at.to_path_buf())
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
