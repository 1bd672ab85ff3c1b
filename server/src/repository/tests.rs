//! Repositories on disk, and what the registry makes of them.

use super::watch::{Arrival, poll, sight};
use super::*;
use crate::batcher;
use crate::error::Error;
use crate::registry::{IndexEntry, Registry};
use backends::llm::LanguageOptions;
use backends::onnx::OnnxOptions;
use backends::{Conventions, Limits, LoadOptions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tempfile::TempDir;

pub(super) const MODEL: &str = "model.json";

/// Puts the example model, with these settings, into `directory`.
pub(super) fn put(directory: &Path, settings: &str) {
    fs::create_dir_all(directory).unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/iris/1");
    let example = fs::read_dir(example).unwrap().next().unwrap().unwrap().path();
    fs::copy(example, directory.join(MODEL)).unwrap();
    if !settings.is_empty() {
        fs::write(directory.join("model.toml"), settings).unwrap();
    }
}

pub(super) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(super) fn names(repository: &Repository) -> Vec<String> {
    repository.list().unwrap().into_keys().collect()
}

/// As Kubernetes mounts a volume whose items have paths of several parts.
#[test]
fn directories_of_a_projected_volume() {
    let root = folder();
    put(&root.path().join("..2026_11_25/iris/1"), "");
    symlink("..2026_11_25", root.path().join("..data")).unwrap();
    symlink("..data/iris", root.path().join("iris")).unwrap();
    let repository = Repository::many(root.path());
    assert_eq!(names(&repository), ["iris"]);
    assert!(repository.has_model());
    assert_eq!(repository.survey().unwrap().notes, Vec::<String>::new());
}

#[test]
fn links_that_lead_elsewhere_are_named() {
    let (root, elsewhere) = (folder(), folder());
    put(&elsewhere.path().join("iris"), "");
    put(&root.path().join("rose"), "");
    symlink(elsewhere.path().join("iris"), root.path().join("iris")).unwrap();
    symlink(elsewhere.path().join("iris"), root.path().join("rose/2")).unwrap();
    symlink(root.path().join("rose/model.json"), root.path().join("README")).unwrap();
    let survey = Repository::many(root.path()).survey().unwrap();
    assert_eq!(survey.models.keys().collect::<Vec<_>>(), ["rose"]);
    let link = |path: &str| {
        let path = root.path().join(path);
        format!("{}: is a symbolic link, which is not followed; copy the directory", path.display())
    };
    assert_eq!(survey.notes, [link("iris")], "a link to a file is no model that somebody missed");
    assert_eq!(survey.models["rose"].notes, [link("rose/2")]);
}

/// The first is there on every volume of ext4. The other cannot be made for root, who may read everything.
#[tokio::test]
async fn directories_that_cannot_be_read_stop_no_others() {
    let root = folder();
    put(&root.path().join("iris"), "");
    fs::create_dir(root.path().join("lost+found")).unwrap();
    let repository = Repository::many(root.path());
    assert_eq!(names(&repository), ["iris"]);
    let mut survey = repository.survey().unwrap();
    assert!(survey.notes[0].ends_with("lost+found: is the file system's own, and no model"), "{:?}", survey.notes);
    survey.look("gone".into(), root.path().join("gone"));
    let reason = survey.models["gone"].plan().unwrap_err().reason;
    assert!(reason.starts_with("its directory cannot be read: "), "{reason}");

    let closed = root.path().join("closed");
    put(&closed, "");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o0)).unwrap();
    if fs::read_dir(&closed).is_err() {
        let registry = registry(repository);
        registry.load_all(Some(&["iris".into()])).await.unwrap();
        assert_eq!(states(&registry), ["closed UNAVAILABLE", "iris READY"]);
        assert!(registry.index().unwrap()[0].reason.starts_with("its directory cannot be read: "));
        registry.load("iris").await.unwrap();
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_model_beside_its_versions_hides_them_and_says_so() {
    let root = folder();
    put(&root.path().join("iris"), "");
    put(&root.path().join("iris/3"), "");
    let found = Repository::many(root.path()).find("iris").unwrap().unwrap();
    assert_eq!(found.versions.into_keys().collect::<Vec<_>>(), [1]);
    assert!(found.notes[0].contains("beside the version directories 3"), "{:?}", found.notes);
}

#[tokio::test]
async fn several_repositories_are_served_as_one() {
    let (one, other) = (folder(), folder());
    put(&one.path().join("iris"), "");
    put(&one.path().join("both"), "");
    put(&other.path().join("rose"), "");
    put(&other.path().join("both"), "");
    let roots = [one.path().to_path_buf(), other.path().to_path_buf()];
    let registry = registry(Repository::many(&roots[..]));
    registry.load_all(None).await.unwrap();
    assert_eq!(states(&registry), ["both UNAVAILABLE", "iris READY", "rose READY"]);
    let reason = &registry.index().unwrap()[0].reason;
    assert!(reason.contains("not unique across all model repositories"), "{reason}");
    let absent = [one.path().to_path_buf(), "/nowhere/at/all".into()];
    let repository = Repository::many(&absent[..]);
    assert_eq!((repository.exists(), repository.root()), (false, Path::new("/nowhere/at/all")));
}

/// A directory that is made first and filled later, as a copy does it.
#[test]
fn models_that_arrive_late() {
    let folder = folder();
    let root = folder.path().join("models");
    let repository = Repository::single_or_many(&root, "iris");
    let mut arrival = Arrival::default();
    let mut looks = |times: usize| (0..times).map(|_| arrival.is_complete(&repository)).collect::<Vec<_>>();
    assert_eq!(looks(2), [false, false], "nothing is there");
    fs::create_dir_all(&root).unwrap();
    assert_eq!(looks(2), [false, false], "an empty directory is no model");
    put(&root, "");
    assert_eq!(looks(1), [false], "it may still be written");
    fs::write(root.join("model.toml"), "threshold = 0.4").unwrap();
    assert_eq!(looks(3), [false, true, false], "settled; what was taken is no news");
    fs::write(root.join("model.toml"), "threshold = 0.25").unwrap();
    assert_eq!(looks(2), [false, true]);
    // As Kubernetes does it, and with the same length and time.
    for (version, text) in [("..1", "threshold = 0.75"), ("..2", "threshold = 0.50")] {
        fs::create_dir(root.join(version)).unwrap();
        let file = root.join(version).join("model.toml");
        fs::write(&file, text).unwrap();
        fs::File::options().write(true).open(file).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    fs::remove_file(root.join("model.toml")).unwrap();
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/model.toml", root.join("model.toml")).unwrap();
    assert_eq!(looks(2), [false, true]);
    fs::remove_file(root.join("..data")).unwrap();
    symlink("..2", root.join("..data")).unwrap();
    assert_eq!(looks(2), [false, true]);
}

/// A graph may be a directory, and have its external data in folders within it.
#[test]
fn files_are_watched_however_deep_they_lie() {
    let (root, elsewhere) = (folder(), folder());
    let version = root.path().join("net/1");
    put(&version, "");
    let deep = version.join("model.onnx/weights/of/layers");
    fs::create_dir_all(&deep).unwrap();
    // One link leads back to where it lies, and one to a folder elsewhere.
    symlink("..", version.join("model.onnx/back")).unwrap();
    symlink(elsewhere.path(), version.join("linked")).unwrap();
    let repository = Repository::many(root.path());
    let mut arrival = Arrival::default();
    let mut looks = || [(); 3].map(|()| arrival.is_complete(&repository));
    assert_eq!(looks(), [false, true, false]);
    for file in [version.join("model.onnx/a.onnx"), deep.join("w.bin"), elsewhere.path().join("w.bin")] {
        for text in ["1", "12"] {
            fs::write(&file, text).unwrap();
            assert_eq!(looks(), [false, true, false], "{}", file.display());
        }
    }
    // What lies beside the versions, or is hidden, is none of theirs.
    for other in ["net/notes/a.txt", "net/1/.git/index"] {
        let file = root.path().join(other);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "1").unwrap();
        assert_eq!(looks(), [false; 3], "{other}");
    }
}

/// Files of a model that lies in a folder of anything.
#[test]
fn beside_a_file_that_was_named_no_folders_are_watched() {
    let folder = folder();
    put(folder.path(), "");
    fs::create_dir(folder.path().join("other")).unwrap();
    let repository = Repository::single_or_many(folder.path().join(MODEL), "iris");
    let mut arrival = Arrival::default();
    let mut looks = || [(); 2].map(|()| arrival.is_complete(&repository));
    assert_eq!(looks(), [false, true]);
    fs::write(folder.path().join("other/a.txt"), "1").unwrap();
    assert_eq!(looks(), [false; 2]);
    fs::write(folder.path().join("model.toml"), "threshold = 0.5").unwrap();
    assert_eq!(looks(), [false, true]);
}

#[tokio::test]
async fn a_file_is_the_model_whatever_lies_beside_it() {
    let folder = folder();
    let file = folder.path().join("models/a.json");
    let repository = Repository::single_or_many(&file, "iris");
    let mut arrival = Arrival::default();
    assert_eq!((repository.exists(), arrival.is_complete(&repository)), (false, false));
    put(&folder.path().join("models"), "");
    assert_eq!((repository.exists(), arrival.is_complete(&repository)), (false, false), "another file");
    fs::copy(folder.path().join("models").join(MODEL), &file).unwrap();
    put(&folder.path().join("models/7"), "");
    assert!(repository.exists());
    assert_eq!([(); 2].map(|()| arrival.is_complete(&repository)), [false, true]);
    let registry = registry(repository);
    registry.load_all(None).await.unwrap();
    assert_eq!(states(&registry), ["iris READY"]);
    assert_eq!(registry.ready_versions("iris"), [1]);
    fs::write(&file, "{}").unwrap();
    registry.load("iris").await.unwrap_err();
    let reason = &registry.index().unwrap()[0].reason;
    assert!(reason.starts_with("a.json is there, but"), "{reason}");
    assert!(reason.contains("which was asked for"), "{reason}");
}

#[tokio::test]
async fn models_are_known_before_they_are_loaded() {
    let root = folder();
    for version in ["1", "2"] {
        put(&root.path().join("iris").join(version), "");
    }
    let registry = registry(Repository::many(root.path()));
    let asked = |name: &str| registry.get(name, None).map(drop);
    assert_eq!(asked("rose"), Err(Error::NotReady("rose".into())), "nobody has looked");
    registry.load_all(Some(&[])).await.unwrap();
    assert_eq!(asked("rose"), Err(Error::UnknownModel("rose".into())));
    assert_eq!(asked("iris"), Err(Error::UnknownModel("iris".into())), "it was not asked for");
    registry.load_all(None).await.unwrap();
    assert_eq!((asked("iris"), registry.ready_versions("iris")), (Ok(()), vec![2]));
}

#[tokio::test]
async fn what_is_waited_for_can_be_neither_loaded_nor_unloaded() {
    let folder = folder();
    let root = folder.path().join("models");
    let registry = registry(Repository::single_or_many(&root, "iris"));
    let reason = || registry.index().unwrap()[0].reason.clone();
    registry.set_awaited(true);
    let awaited = reason();
    for exists in [false, true] {
        assert_eq!(root.exists(), exists);
        assert_eq!(registry.load("iris").await, Err(Error::NotReady("iris".into())));
        assert_eq!((registry.unload("iris").await, reason()), (Ok(()), awaited.clone()));
        fs::create_dir_all(&root).unwrap();
    }
    put(&root.join("3"), "");
    fs::write(root.join("model.toml"), "nonsense = 1").unwrap();
    registry.load_all(None).await.unwrap();
    assert_eq!(states(&registry), ["iris UNAVAILABLE"], "no placeholder is left");
    assert!(!registry.ready());
}

pub(super) fn registry(repository: Repository) -> Arc<Registry> {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
    let options = LoadOptions {
        pool,
        limits: Limits::default(),
        conventions: Conventions::Kserve,
        language: LanguageOptions::default(),
        onnx: OnnxOptions::default(),
    };
    Arc::new(Registry::new(repository, options, batcher::Options::default()))
}

pub(super) fn states(registry: &Registry) -> Vec<String> {
    let shown = |entry: IndexEntry| format!("{} {}", entry.name, entry.state);
    registry.index().unwrap().into_iter().map(shown).collect()
}

#[tokio::test]
async fn a_failed_reload_serves_on_and_says_why() {
    let root = folder();
    put(&root.path().join("iris"), "");
    let registry = registry(Repository::many(root.path()));
    registry.load_all(None).await.unwrap();
    let reason = || registry.index().unwrap()[0].reason.clone();
    assert_eq!((states(&registry), reason()), (vec!["iris READY".to_owned()], String::new()));
    fs::write(root.path().join("iris").join(MODEL), "{\"learner\":3}").unwrap();
    let Err(Error::LoadFailed(why)) = registry.load("iris").await else { panic!("loaded") };
    assert_eq!((states(&registry), why.contains(&reason())), (vec!["iris READY".to_owned()], true));
    assert!(reason().starts_with("iris/model.json: "), "{}", reason());
    fs::write(root.path().join("iris/model.toml"), "nonsense = 1").unwrap();
    registry.load("iris").await.unwrap_err();
    assert!(reason().contains("nonsense"), "{}", reason());
    fs::remove_file(root.path().join("iris/model.toml")).unwrap();
    put(&root.path().join("iris"), "");
    registry.load("iris").await.unwrap();
    assert_eq!(reason(), "");
}

/// Others may take minutes to load.
#[tokio::test]
async fn polling_sees_what_came_while_the_server_started() {
    let root = folder();
    put(&root.path().join("iris"), "");
    put(&root.path().join("rose"), "");
    fs::write(root.path().join("rose").join(MODEL), "{").unwrap();
    let registry = registry(Repository::many(root.path()));
    let lay = sight(&registry).unwrap();
    registry.load_all(None).await.unwrap();
    // Before polling begins one model comes, and one is mended.
    put(&root.path().join("tulip"), "");
    put(&root.path().join("rose"), "");
    let polling = tokio::spawn(poll(registry.clone(), lay, Duration::from_millis(10)));
    while states(&registry) != ["iris READY", "rose READY", "tulip READY"] {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    polling.abort();
}

/// What was asked for last is what is so in the end.
#[tokio::test]
async fn a_load_that_nobody_waits_for_has_its_turn_to_its_end() {
    let root = folder();
    put(&root.path().join("iris"), "");
    let registry = registry(Repository::many(root.path()));
    registry.load_all(None).await.unwrap();
    for _ in 0..20 {
        // It is begun, and who asked for it leaves.
        let mut load = Box::pin(registry.load("iris"));
        let _ = std::future::poll_fn(|cx| Poll::Ready(load.as_mut().poll(cx))).await;
        drop(load);
        registry.unload("iris").await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(states(&registry), ["iris UNAVAILABLE"]);
    }
}

#[tokio::test]
async fn what_was_unloaded_is_listed_no_more() {
    let root = folder();
    put(&root.path().join("iris"), "");
    put(&root.path().join("rose"), "");
    let registry = registry(Repository::many(root.path()));
    registry.load_all(None).await.unwrap();
    registry.unload("iris").await.unwrap();
    assert_eq!(registry.names(), ["rose"]);
    assert_eq!(states(&registry), ["iris UNAVAILABLE", "rose READY"], "the index tells of it");
    registry.load("iris").await.unwrap();
    assert_eq!(registry.names(), ["iris", "rose"]);
    assert_eq!(registry.load("zz").await, Err(Error::NothingToLoad("zz".into())));
}

#[tokio::test]
async fn what_was_unloaded_is_forgotten_with_its_directory() {
    let root = folder();
    for name in ["iris", "rose", "tulip"] {
        put(&root.path().join(name), "");
    }
    let registry = registry(Repository::many(root.path()));
    registry.load_all(None).await.unwrap();
    registry.unload("iris").await.unwrap();
    registry.unload("tulip").await.unwrap();
    assert_eq!(registry.unload("iris").await, Ok(()), "it is known for as long as it can be loaded");
    fs::remove_dir_all(root.path().join("iris")).unwrap();
    fs::remove_dir_all(root.path().join("rose")).unwrap();
    assert_eq!(states(&registry), ["rose READY", "tulip UNAVAILABLE"], "what serves is told of wherever its files are");
    registry.unload_gone("rose").await;
    assert_eq!(states(&registry), ["tulip UNAVAILABLE"]);
    assert_eq!(registry.unload("iris").await, Err(Error::UnknownModel("iris".into())));
    assert_eq!(registry.get("rose", None).map(drop), Err(Error::UnknownModel("rose".into())));
    registry.load("tulip").await.unwrap();
    assert_eq!((states(&registry), registry.ready()), (vec!["tulip READY".to_owned()], true));
}

/// Other tests load models at the same time: names are this one's own.
#[tokio::test]
async fn metrics_of_a_model_end_with_its_last_request() {
    let root = folder();
    let versions = ["1", "2"].map(|version| format!("model=\"lily\",version=\"{version}\""));
    put(&root.path().join("lily/1"), "");
    let registry = registry(Repository::many(root.path()));
    let told = |label: &str| {
        registry.refresh_metrics();
        crate::metrics::text(|_| "").lines().filter(|line| line.contains(label)).count()
    };
    registry.load_all(None).await.unwrap();
    let lines = told("\"lily\"");
    assert!(lines > 0);
    put(&root.path().join("lily/2"), "");
    registry.load("lily").await.unwrap();
    assert_eq!([told(&versions[0]), told("\"lily\"")], [0, lines], "one version took the place of another");
    assert!(told(&versions[1]) > 0);
    let asked = registry.get("lily", None).unwrap();
    registry.unload("lily").await.unwrap();
    assert_eq!(told("\"lily\""), lines, "it is being asked");
    drop(asked);
    assert_eq!(told("\"lily\""), 0);
}

#[tokio::test]
async fn a_batch_has_no_more_rows_than_the_model_takes() {
    let root = folder();
    put(&root.path().join("iris"), "max_batch_size = 8");
    put(&root.path().join("rose"), "");
    let registry = registry(Repository::many(root.path()));
    registry.load_all(None).await.unwrap();
    let shown = |name: &str| format!("{:?}", registry.get(name, None).unwrap().batcher().unwrap());
    assert!(shown("iris").contains("max_rows: 8,"), "{}", shown("iris"));
    assert!(shown("rose").contains(&format!("max_rows: {},", batcher::Options::default().max_rows)));
}

#[test]
fn what_a_directory_that_was_named_lacks() {
    let root = folder();
    fs::write(root.path().join("model.safetensors"), "x").unwrap();
    let survey = Repository::single_or_many(root.path(), "a").survey().unwrap();
    assert!(survey.models.is_empty());
    assert!(survey.notes[0].contains("model.safetensors is there, but no config.json"), "{:?}", survey.notes);
    assert!(survey.notes[0].starts_with(&root.path().display().to_string()), "{:?}", survey.notes);
    assert_eq!(Repository::many(root.path()).survey().unwrap().notes, Vec::<String>::new());
    put(&root.path().join("iris"), "");
    assert_eq!(Repository::single_or_many(root.path(), "a").survey().unwrap().notes, Vec::<String>::new());
}
