//! Every published number of every paper is shown, next to the measured number that it was compared with before
//! papers were data. Run folders are fabricated with scores that a hash determines; `data/published_pages.json` holds
//! what the earlier tables showed for the same scores.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use stillhouse_report::page::{Page, Samples};
use stillhouse_report::static_table::{DatasetCounts, ModelCounts};
use stillhouse_report::{Caption, Paper, Planned, PublishedSection, StaticTable, TableSpec};
use stillhouse_runs::{CellResult, Role, RunDir, RunInfo, RunSummary, TeacherSummary};
use toml::{Table, Value};

/// Table, row, column, published and measured number.
type CountedValue = (String, String, String, String, Option<f64>);

#[derive(Deserialize)]
struct Expected {
    classes: BTreeMap<String, Classes>,
    pages: Vec<ExpectedPage>,
    /// Tables that run nothing: table, row, column, published, measured.
    counted: BTreeMap<String, Vec<CountedValue>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Classes {
    Names(Vec<String>),
    Count(usize),
}

#[derive(Deserialize)]
struct ExpectedPage {
    experiment: String,
    paper: String,
    table: String,
    masks: bool,
    exits: bool,
    /// Table, row, column, published.
    lines: Vec<(String, String, String, String)>,
    profiles: Vec<Profile>,
}

#[derive(Deserialize)]
struct Profile {
    profile: String,
    datasets: Vec<String>,
    students: Vec<Option<String>>,
    ratios: Vec<u64>,
    seeds: Vec<u64>,
    teacher: Option<String>,
    /// In the order of the experiment.
    methods: serde_json::Map<String, serde_json::Value>,
    /// Measured numbers of the lines.
    measured: Vec<Option<f64>>,
    /// Method, student, dataset, ratio, published number and the difference on the page.
    cells: Vec<(String, String, String, u64, f64, String)>,
    /// Method, dataset, exit, measured, published.
    exits: Vec<(String, String, String, f64, f64)>,
    teachers: String,
}

#[derive(Deserialize)]
struct Method {
    network: Option<String>,
    body: Option<String>,
    loss: serde_json::Value,
    lr: f64,
}

/// FNV-1a, 32 bits.
fn hash(key: &str) -> u32 {
    key.bytes().fold(0x811c_9dc5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

fn share(key: &str) -> f64 {
    f64::from(3000 + hash(key) % 6000) / 10000.0
}

fn correct(key: &str) -> u64 {
    u64::from(4000 + hash(&format!("{key}#correct")) % 5500)
}

fn is_synthetic(dataset: &str) -> bool {
    ["scenes", "fields", "species"].contains(&dataset)
}

fn class_names(expected: &Expected, dataset: &str) -> Vec<String> {
    match &expected.classes[dataset] {
        Classes::Names(names) => names.clone(),
        Classes::Count(count) => (0..*count).map(|c| format!("class {c}")).collect(),
    }
}

fn scores(
    page: &ExpectedPage,
    key: &str,
    classes: usize,
    exits: bool,
    early: bool,
) -> BTreeMap<String, Option<f64>> {
    let mut scores = BTreeMap::new();
    let mut add = |name: String, at: &str| scores.insert(name, Some(share(&format!("{key}#{at}"))));
    if page.masks {
        add("miou".into(), "miou");
        for class in 0..classes {
            add(format!("iou.{class}"), &format!("iou.{class}"));
        }
    } else if exits {
        add("hflip.accuracy".into(), "hflip");
        add("vflip.accuracy".into(), "vflip");
        if early {
            add("exit3.accuracy".into(), "exit3");
        }
    }
    scores
}

/// Ten test images per class, of which a hash determines how many are classified correctly.
fn write_predictions(dir: &RunDir, key: &str, classes: usize) {
    let (mut labels, mut logits) = (Vec::new(), Vec::new());
    for class in 0..classes {
        let correct = 1 + hash(&format!("{key}#class.{class}")) % 10;
        for image in 0..10 {
            labels.push(class as u32);
            let predicted = if image < correct { class } else { (class + 1) % classes };
            logits.extend((0..classes).map(|c| if c == predicted { 1f32 } else { 0.0 }));
        }
    }
    let ids: Vec<i64> = (0..labels.len() as i64).collect();
    let tensors = [
        ("indices", "I64", vec![ids.len()], ids.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()),
        ("logits", "F32", vec![ids.len(), classes], logits.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ("labels", "U32", vec![ids.len()], labels.iter().flat_map(|v| v.to_le_bytes()).collect()),
    ];
    write_safetensors(&dir.predictions_path(), &tensors);
}

fn write_safetensors(path: &Path, tensors: &[(&str, &str, Vec<usize>, Vec<u8>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert((*name).to_string(), entry);
        data.extend_from_slice(bytes);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
}

/// Parameter names of a network on a Swin Transformer.
fn write_student(dir: &RunDir, backbone: &str) {
    let third = if backbone.contains("tiny") { 6 } else { 18 };
    let mut names = Vec::new();
    for (stage, blocks) in [2, 2, third, 2].into_iter().enumerate() {
        names.extend((0..blocks).map(|block| format!("backbone.layers.{stage}.blocks.{block}.weight")));
    }
    let tensors: Vec<_> = names.iter().map(|n| (n.as_str(), "F32", vec![0], Vec::new())).collect();
    write_safetensors(&dir.student_path(), &tensors);
}

fn info(
    page: &ExpectedPage,
    profile: &Profile,
    cell: &str,
    role: Role,
    method: &str,
    classes: Vec<String>,
) -> RunInfo {
    RunInfo {
        format: 1,
        experiment: page.experiment.clone(),
        profile: profile.profile.clone(),
        cell: cell.into(),
        hash: "00000000".into(),
        role,
        method: method.into(),
        classes,
        ..Default::default()
    }
}

fn table(text: &str) -> Table {
    toml::from_str(text).unwrap()
}

/// Fabricates the run folders of a profile.
fn fabricate(expected: &Expected, page: &ExpectedPage, profile: &Profile, root: &Path) -> Vec<Planned> {
    let mut planned = Vec::new();
    for seed in &profile.seeds {
        for student in &profile.students {
            for dataset in &profile.datasets {
                for ratio in &profile.ratios {
                    for (method, settings) in &profile.methods {
                        let settings: Method = serde_json::from_value(settings.clone()).unwrap();
                        let at = (dataset.as_str(), *ratio, *seed);
                        planned.push(fabricate_run(
                            expected,
                            page,
                            profile,
                            root,
                            at,
                            method,
                            student.as_deref(),
                            &settings,
                        ));
                    }
                }
            }
        }
    }
    planned
}

#[allow(clippy::too_many_arguments)]
fn fabricate_run(
    expected: &Expected,
    page: &ExpectedPage,
    profile: &Profile,
    root: &Path,
    (dataset, ratio, seed): (&str, u64, u64),
    method: &str,
    student: Option<&str>,
    settings: &Method,
) -> Planned {
    let network = student.or(settings.network.as_deref()).unwrap();
    let backbone = student.or(settings.body.as_deref()).unwrap_or(network);
    let at = format!("{dataset}/{ratio}/{seed}");
    let key = format!("{}/{}/{method}/{backbone}/{at}", page.experiment, profile.profile);
    let cell = format!("{network}-{dataset}-{ratio}-{method}-s{seed}");
    let dir = RunDir::new(root.join(format!("{cell}-00000000")));
    fs::create_dir_all(dir.path()).unwrap();
    let classes = class_names(expected, dataset);
    let count = classes.len();
    let mut run = table(&format!(
        "student.model = '{network}'\ndata.dataset = '{dataset}'\ndata.ratio = {ratio}\n\
         train.seed = {seed}\ntrain.optimizer.lr = {:?}\n",
        settings.lr
    ));
    if backbone != network {
        run["student"]
            .as_table_mut()
            .unwrap()
            .insert("variant".into(), table(&format!("backbone = '{backbone}'")).into());
    }
    run.insert("loss".into(), Value::try_from(&settings.loss).unwrap());
    dir.write_info(&RunInfo { run, ..info(page, profile, &cell, Role::Student, method, classes) }).unwrap();
    let teacher = profile.teacher.as_deref().filter(|_| !method.starts_with("baseline")).map(|model| {
        let key = format!("{}/{}/teacher/{model}/{at}", page.experiment, profile.profile);
        let cell = format!("{model}-{dataset}-{ratio}-s{seed}-00000000");
        let teacher = TeacherSummary {
            model: model.into(),
            cell: cell.clone(),
            init: "scratch".into(),
            epochs: 1,
            correct: (!page.masks).then(|| correct(&key)),
            total: 10000,
            scores: scores(page, &key, count, false, false),
        };
        let dir = RunDir::new(root.join("teachers").join(&cell));
        if !dir.path().exists() {
            fs::create_dir_all(dir.path()).unwrap();
            let run = table(&format!(
                "student.model = '{model}'\ndata.dataset = '{dataset}'\ndata.ratio = {ratio}\ntrain.seed = {seed}\n"
            ));
            let names = class_names(expected, dataset);
            let info = info(page, profile, &cell, Role::Teacher, "teacher", names);
            dir.write_info(&RunInfo { run, ..info }).unwrap();
            let result = CellResult {
                format: 1,
                correct: teacher.correct,
                total: 10000,
                scores: teacher.scores.clone(),
                parameters: 1000,
                ..Default::default()
            };
            dir.write_result(&result).unwrap();
            if !page.masks {
                write_predictions(&dir, &key, count);
            }
        }
        teacher
    });
    if !page.masks && count < 40 {
        write_predictions(&dir, &key, count);
    }
    if page.exits {
        write_student(&dir, backbone);
    }
    let result = CellResult {
        format: 1,
        correct: (!page.masks).then(|| correct(&key)),
        total: 10000,
        scores: scores(page, &key, count, page.exits, method != "baseline"),
        parameters: u64::from(10_000_000 + hash(&format!("parameters/{network}")) % 90_000_000),
        macs: 1_000_000_000 + u64::from(hash(&format!("macs/{network}"))) % 90_000_000_000,
        summary: RunSummary {
            synthetic: is_synthetic(dataset),
            train_images: (100 + hash(&format!("train/{dataset}")) % 3000) as usize,
            test_images: 10000,
            image_size: 64,
            teacher,
            ..Default::default()
        },
        ..Default::default()
    };
    dir.write_result(&result).unwrap();
    Planned {
        method: method.into(),
        student: backbone.into(),
        dataset: dataset.into(),
        ratio,
        seed,
        folder: dir.path().to_path_buf(),
    }
}

fn experiments() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments")
}

/// Names of the folders with a `paper.toml`.
fn papers() -> Vec<String> {
    let folders = fs::read_dir(experiments()).unwrap().map(|e| e.unwrap().path());
    let papers = folders.filter(|path| path.join("paper.toml").is_file());
    let names: Vec<String> = papers.map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert!(names.len() >= 4, "{names:?}");
    names
}

fn open_paper(name: &str) -> Paper {
    Paper::open(&experiments().join(name).join("paper.toml")).unwrap()
}

fn expected() -> Expected {
    serde_json::from_str(include_str!("data/published_pages.json")).unwrap()
}

fn assert_close(found: Option<f64>, expected: Option<f64>, at: &str) {
    match (found, expected) {
        (Some(found), Some(expected)) => {
            assert!((found - expected).abs() < 2e-6, "{at}: {found}, {expected}")
        }
        // More may be measured than before, never less.
        (None, Some(expected)) => panic!("{at}: not measured, expected {expected}"),
        (_, None) => {}
    }
}

#[test]
fn shows_every_published_number_next_to_the_measured_one() {
    let expected = expected();
    let mut shown = 0;
    for page in &expected.pages {
        let paper = open_paper(&page.paper);
        for profile in &page.profiles {
            let root = tempfile::tempdir().unwrap();
            let planned = fabricate(&expected, page, profile, root.path());
            let caption = Caption {
                title: page.experiment.clone(),
                profile: profile.profile.clone(),
                synthetic: profile.datasets.iter().any(|d| is_synthetic(d)),
                ..Default::default()
            };
            let section = PublishedSection {
                paper: Some(page.paper.clone()),
                table: Some(page.table.clone()),
                ..Default::default()
            };
            let spec = TableSpec::new(caption, Some(section), Vec::new(), planned);
            let table = spec.table(Some(&paper)).unwrap();
            let html = Page {
                spec: &spec,
                table: &table,
                finished: &spec.finished().unwrap(),
                embeddings: &[],
                samples: &Samples::default(),
                program: "test",
            }
            .html();
            let markdown = table.markdown();
            let at = format!("{} {}", page.experiment, profile.profile);

            assert_eq!(table.published.len(), page.lines.len(), "{at}");
            for ((id, row, column, published), measured) in page.lines.iter().zip(&profile.measured) {
                let found =
                    table.published.iter().find(|v| (&v.row, &v.column, &v.table) == (row, column, id));
                let found = found.unwrap_or_else(|| panic!("{at}: no {row}, {column}"));
                assert_eq!(found.published, *published, "{at}: {row}, {column}");
                assert_close(found.measured, *measured, &format!("{at}: {row}, {column}"));
                assert!(markdown.contains(&format!("| {published} |")), "{at}: {published}");
                assert!(html.contains(&format!(">{published}</td>")), "{at}: {published}");
                shown += 1;
            }
            for (method, student, dataset, ratio, published, difference) in &profile.cells {
                let cell = table.cells.iter().find(|c| {
                    (&c.method, &c.student, &c.dataset, c.ratio) == (method, student, dataset, *ratio)
                });
                assert_eq!(cell.unwrap().published, Some(*published), "{at}: {method} {dataset}");
                let published = format!("<td>{published:.2}</td><td");
                let difference = format!(">{difference}</td>");
                let next = |(at, text): (usize, &str)| {
                    let rest = &html[at + text.len()..];
                    rest.find("</td>").is_some_and(|end| rest[..end + 5].ends_with(&difference))
                };
                assert!(html.match_indices(&published).any(next), "{at}: {published} {difference}");
            }
            for (method, dataset, exit, measured, published) in &profile.exits {
                let row =
                    table.exits.iter().find(|e| (&e.method, &e.dataset, &e.exit) == (method, dataset, exit));
                let row = row.unwrap_or_else(|| panic!("{at}: no {method} {exit}"));
                assert_eq!(row.published, Some(*published), "{at}: {method} {exit}");
                assert_close(Some(row.mean), Some(*measured), &format!("{at}: {method} {exit}"));
            }
            assert!(markdown.contains(&profile.teachers), "{at}: {}\n{markdown}", profile.teachers);
        }
    }
    assert_eq!(shown, 678, "numbers shown, over all profiles");
}

#[test]
fn shows_counted_numbers_next_to_the_published_ones() {
    for (name, lines) in expected().counted {
        let folder = if name.starts_with("table") { "class_centric" } else { "mksmt" };
        let path = experiments().join(folder).join(format!("{name}.toml"));
        let text = fs::read_to_string(&path).unwrap();
        let table = StaticTable::parse(&text, &name).unwrap().unwrap();
        let section = table.published().unwrap().clone();
        let paper = open_paper(&section.paper.unwrap());
        let published = paper.published_table(&section.table.unwrap()).unwrap();
        let result = match &table {
            StaticTable::Datasets(datasets) => {
                let counts =
                    [("rsc11", 11, 1232), ("ucm", 21, 2100), ("rsscn7", 7, 2800), ("aid", 30, 10000)];
                assert_eq!(datasets.datasets, counts.map(|(name, ..)| name));
                let counts = counts.map(|(dataset, classes, images)| DatasetCounts {
                    dataset: dataset.into(),
                    classes,
                    images,
                });
                datasets.result(counts.to_vec(), Some(&published))
            }
            StaticTable::ModelSizes(sizes) => {
                // Parameters, multiply-accumulates, outputs of batch norms.
                let known = [
                    ("resnet50", 23_551_061, 4_087_179_264, 11_113_984),
                    ("resnet18", 11_187_285, 1_813_572_096, 2_483_712),
                    ("mobilenetv2_100", 2_250_773, 299_521_152, 6_678_112),
                    ("swin_large_patch4_window12_384", 195_505_916, 103_917_858_816, 0),
                    ("mksmt", 197_625_028, 103_919_974_400, 0),
                ];
                let counts = sizes.models.iter().map(|model| {
                    let (_, parameters, macs, outputs) =
                        *known.iter().find(|(name, ..)| name == model).unwrap();
                    let flops = sizes.flops.per_mac * macs + sizes.flops.per_batch_norm_output * outputs;
                    ModelCounts { model: model.clone(), parameters, macs, flops }
                });
                sizes.result(counts.collect(), Some(&published))
            }
        };
        for (id, row, column, published, measured) in lines {
            let found =
                result.published.iter().find(|v| (&v.row, &v.column, &v.table) == (&row, &column, &id));
            let found = found.unwrap_or_else(|| panic!("{name}: no {row}, {column}"));
            assert_eq!(found.published, published);
            assert_close(found.measured, measured, &format!("{name}: {row}, {column}"));
            assert!(result.terminal().contains(&published));
        }
    }
}

/// Every number of every paper is shown in some experiment of its folder.
#[test]
fn shows_every_number_of_every_paper() {
    for paper in papers() {
        let folder = experiments().join(&paper);
        let mut tables = Vec::new();
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with("paper.toml") {
                let text: Table = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
                let published = text["published"].as_table().unwrap().clone();
                let section: PublishedSection = published.try_into().unwrap();
                assert_eq!(section.paper.as_deref(), Some(paper.as_str()), "{}", path.display());
                tables.extend(section.table);
            }
        }
        let paper = open_paper(&paper);
        let shown: usize =
            tables.iter().map(|table| paper.published_table(table).unwrap().values().count()).sum();
        assert_eq!(shown, paper.tables.iter().map(|t| t.values.len()).sum::<usize>(), "{}", paper.title);
    }
}
