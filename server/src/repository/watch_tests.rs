//! What becomes of models whose files are gone for a moment, cannot be told apart, or are none.

use super::tests::{MODEL, folder, names, put, registry, states};
use super::watch::{Watch, sight};
use super::*;
use crate::error::Error;
use crate::registry::Registry;
use std::os::unix::fs::symlink;

/// What is served, and watched from then on.
struct Watched {
    registry: Arc<Registry>,
    watch: Watch,
}

impl Watched {
    async fn of(repository: Repository) -> Self {
        let registry = registry(repository);
        let watch = Watch::of(sight(&registry).unwrap());
        registry.load_all(None).await.unwrap();
        Watched { registry, watch }
    }

    /// What is served after so many looks.
    async fn looks(&mut self, times: usize) -> Vec<String> {
        for _ in 0..times {
            self.watch.look(&self.registry).await;
        }
        states(&self.registry)
    }

    fn reason(&self) -> String {
        reason(&self.registry)
    }
}

fn reason(registry: &Registry) -> String {
    registry.index().unwrap()[0].reason.clone()
}

/// In the directory itself, and in that of a version, which a repository would have for a model.
#[tokio::test]
async fn one_model_stays_one_while_its_file_is_missing() {
    for version in ["", "3"] {
        let root = folder();
        let (file, hidden) = (root.path().join(version).join(MODEL), root.path().join(".model.json"));
        put(&root.path().join(version), "");
        let mut watched = Watched::of(Repository::single_or_many(root.path(), "iris")).await;
        fs::rename(&file, &hidden).unwrap();
        assert_eq!(watched.looks(4).await, ["iris READY"]);
        assert!(watched.reason().contains("no model file"), "{}", watched.reason());
        assert!(watched.registry.get("iris", None).is_ok());
        fs::rename(&hidden, &file).unwrap();
        assert_eq!((watched.looks(2).await, watched.reason()), (vec!["iris READY".to_owned()], String::new()));
        fs::remove_dir_all(root.path()).unwrap();
        assert_eq!(watched.looks(3).await, ["iris READY"], "nothing is known of what cannot be read");
        fs::create_dir(root.path()).unwrap();
        assert!(watched.looks(3).await.contains(&"iris READY".to_owned()), "it is filled again, perhaps");
        put(&root.path().join("rose"), "");
        assert_eq!(watched.looks(3).await, ["rose READY"], "others lie there by now");
    }
}

#[tokio::test]
async fn one_model_is_loaded_again_by_its_name_alone() {
    let root = folder();
    put(&root.path().join("1"), "");
    let repository = Repository::single_or_many(root.path(), "iris");
    let registry = registry(repository.clone());
    registry.load_all(None).await.unwrap();
    fs::remove_file(root.path().join("1").join(MODEL)).unwrap();
    let Err(Error::LoadFailed(why)) = registry.load("iris").await else { panic!("loaded") };
    assert!(why.contains("no model file"), "{why}");
    assert_eq!(registry.load("1").await, Err(Error::NothingToLoad("1".into())));
    assert_eq!((names(&repository), states(&registry)), (vec!["iris".to_owned()], vec!["iris READY".to_owned()]));
    // Another directory is another matter.
    fs::remove_dir_all(root.path()).unwrap();
    assert!(repository.list().is_err());
    put(&root.path().join("rose"), "");
    assert_eq!(names(&repository), ["rose"]);
}

/// Two renames, with a look between them.
#[tokio::test]
async fn what_one_look_does_not_see_serves_on() {
    let root = folder();
    let (place, aside) = (root.path().join("iris"), root.path().join(".iris"));
    put(&place, "");
    let mut watched = Watched::of(Repository::many(root.path())).await;
    for _ in 0..2 {
        fs::rename(&place, &aside).unwrap();
        assert_eq!(watched.looks(1).await, ["iris READY"]);
        fs::rename(&aside, &place).unwrap();
        assert_eq!(watched.looks(3).await, ["iris READY"]);
    }
    fs::remove_dir_all(&place).unwrap();
    assert_eq!(watched.looks(2).await, Vec::<String>::new());
    put(&place, "");
    assert_eq!(watched.looks(2).await, ["iris READY"]);
}

/// It comes while the model serves, and goes, though of the model itself no file has changed.
#[tokio::test]
async fn another_of_the_same_name_is_noticed() {
    let (one, other) = (folder(), folder());
    put(&one.path().join("iris"), "");
    put(&other.path().join("iris"), "");
    let roots = [one.path().to_path_buf(), other.path().to_path_buf()];
    let mut watched = Watched::of(Repository::many(&roots[..])).await;
    assert_eq!(states(&watched.registry), ["iris UNAVAILABLE"]);
    fs::remove_dir_all(other.path().join("iris")).unwrap();
    assert_eq!((watched.looks(2).await, watched.reason()), (vec!["iris READY".to_owned()], String::new()));
    put(&other.path().join("iris"), "");
    assert_eq!(watched.looks(2).await, ["iris READY"]);
    assert!(watched.reason().contains("not unique across all model repositories"), "{}", watched.reason());
    fs::remove_dir_all(other.path().join("iris")).unwrap();
    assert_eq!((watched.looks(2).await, watched.reason()), (vec!["iris READY".to_owned()], String::new()));
}

#[tokio::test]
async fn without_its_repository_a_model_serves_on_and_says_why() {
    let folder = folder();
    let (root, elsewhere) = (folder.path().join("models"), folder.path().join("elsewhere"));
    put(&root.join("iris"), "");
    let registry = registry(Repository::many(root.as_path()));
    registry.load_all(None).await.unwrap();
    fs::rename(&root, &elsewhere).unwrap();
    for name in ["iris", "rose"] {
        let failed = Error::LoadFailed(format!("failed to load '{name}': the model repository is not there"));
        assert_eq!(registry.load(name).await, Err(failed));
    }
    assert_eq!(
        (states(&registry), reason(&registry)),
        (vec!["iris READY".to_owned()], "the model repository is not there".to_owned())
    );
    fs::rename(&elsewhere, &root).unwrap();
    registry.load("iris").await.unwrap();
    assert_eq!(reason(&registry), "");
}

#[tokio::test]
async fn a_link_that_is_not_followed_is_named_to_who_asks_for_it() {
    let (root, elsewhere) = (folder(), folder());
    put(elsewhere.path(), "");
    put(&root.path().join("rose"), "");
    symlink(elsewhere.path(), root.path().join("iris")).unwrap();
    let registry = registry(Repository::many(root.path()));
    registry.load_all(None).await.unwrap();
    let why = "failed to load 'iris': iris: is a symbolic link, which is not followed; copy the directory";
    assert_eq!(registry.load("iris").await, Err(Error::LoadFailed(why.into())));
    assert_eq!(states(&registry), ["rose READY"]);
}

#[test]
fn numbers_that_are_no_versions_are_named() {
    let root = folder();
    for version in ["iris/01", "rose/2", "rose/0", "rose/99999999999999999999", "tulip/00", "lily/v1"] {
        put(&root.path().join(version), "");
    }
    put(&root.path().join("tulip"), "");
    put(&root.path().join("lily"), "");
    let found = Repository::many(root.path()).list().unwrap();
    let why = "is no version: versions are 1, 2, ... up to 18446744073709551615, without leading zeros";
    assert_eq!(found["iris"].refused, Some(format!("'01' {why}")));
    assert_eq!(found["iris"].notes, Vec::<String>::new(), "it is said once");
    let note = |path: &str, name: &str| format!("{}: '{name}' {why}", root.path().join(path).display());
    assert_eq!(found["rose"].notes, [note("rose", "0"), note("rose", "99999999999999999999")]);
    assert_eq!(found["rose"].versions.keys().collect::<Vec<_>>(), [&2]);
    assert_eq!(found["tulip"].notes, [note("tulip", "00")]);
    assert_eq!((found["rose"].refused.clone(), found["tulip"].refused.clone()), (None, None));
    assert_eq!(found["lily"].notes, Vec::<String>::new(), "any other name is nobody's concern");
}

#[test]
fn a_repository_that_is_a_model_itself_is_told_apart() {
    let root = folder();
    put(root.path(), "");
    let notes = || Repository::many(root.path()).survey().unwrap().notes;
    let shown = root.path().display();
    let note =
        format!("{shown}: holds a model file itself, which is passed over: serve it alone with --model-dir {shown}");
    assert_eq!(notes(), [note]);
    assert_eq!(Repository::single_or_many(root.path(), "a").survey().unwrap().notes, Vec::<String>::new());
    put(&root.path().join("iris"), "");
    assert_eq!(notes(), Vec::<String>::new());
}
