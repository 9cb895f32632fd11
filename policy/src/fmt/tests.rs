use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn file(text: &str) -> SourceFile {
    SourceFile { name: "a.yaml".into(), text: text.into() }
}

fn formatted(text: &str) -> String {
    let made = format(&file(text)).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
    assert_eq!(made.left, None, "{text}");
    let again = format(&file(&made.text)).unwrap_or_else(|errors| panic!("{}\n{errors}", made.text));
    assert_eq!(again.text, made.text, "of {text:?}");
    made.text
}

#[test]
fn documents_become_canonical() {
    let table: &[(&str, &str)] = &[
        // Line ends, blanks, blank lines, the end, the mark of Windows' editors.
        ("\u{feff}a: b  \r\n\r\n\r\n\r\nc: d\t\r\n\r\n", "a: b\n\nc: d\n"),
        ("a: b\rc: d", "a: b\nc: d\n"),
        ("\n\n# x\n\n\n# y\n", "# x\n\n# y\n"),
        ("  \n", ""),
        // Markers.
        ("---\na: b\n\n---\n\n---\n---\nc: d\n---\n", "a: b\n---\nc: d\n"),
        ("# licence\n---\na: b\n", "# licence\n---\na: b\n"),
        ("--- # what\na: b\n", "--- # what\na: b\n"),
        // Columns.
        (
            "a:\n    b:\n        - c: 1\n          d: 2\n        - e\n",
            "a:\n  b:\n  - c: 1\n    d: 2\n  - e\n",
        ),
        ("a:\n- b:\n     c: 1\n", "a:\n- b:\n    c: 1\n"),
        ("-   - a\n    -   b: 1\n        c: 2\n-\n     x: 1\n", "- - a\n  - b: 1\n    c: 2\n-\n  x: 1\n"),
        ("a:\n      long\n", "a:\n  long\n"),
        ("  a: 1\n  b: 2\n", "a: 1\nb: 2\n"),
        // Blanks between words.
        ("a :   b\n'c' :\td\n", "a: b\n'c': d\n"),
        ("a: { b:  [1,2 ,  { } ] , \"c\":d }\n", "a: {b: [1, 2, {}], \"c\": d}\n"),
        ("a: {\"b\":1,c: }\n", "a: {\"b\": 1, c: }\n"),
        ("a: [ &x 1, *x , !t   y ]\n", "a: [&x 1, *x , !t   y]\n"),
        ("a: '{ b:  c }'\nd: e   f\n", "a: '{ b:  c }'\nd: e   f\n"),
        // Comments keep what they stand at.
        (
            "# top\na:   # right\n    # of b\n    - b   # x\n    # end of a\n# of c\nc: 1\n# end\n",
            "# top\na:   # right\n# of b\n- b   # x\n# end of a\n# of c\nc: 1\n# end\n",
        ),
        ("a: b # why?\n# really?\nc: d\n", "a: b # why?\n# really?\nc: d\n"),
        // What stands on several lines moves as a whole.
        (
            "a:\n    - b: |\n        x\n\n          y  \n\n\n      c: 1\n",
            "a:\n- b: |\n    x\n\n      y  \n\n  c: 1\n",
        ),
        (
            "a:\n    b: |+\n        x\n\n\n    c: >-\n        y\n",
            "a:\n  b: |+\n      x\n\n\n  c: >-\n      y\n",
        ),
        ("a:\n    b: [\n        1,  2, # x\n\n    ]\n", "a:\n  b: [\n      1,  2, # x\n\n  ]\n"),
        (
            "a:\n    b: \"x  \n\n        y\"\n    c: long\n      text\n",
            "a:\n  b: \"x  \n\n      y\"\n  c: long\n    text\n",
        ),
        // Whose columns are counted keeps them; whose keys are odd is not touched.
        ("a:\n    b: |2\n         x\n    c:   1 \n", "a:\n    b: |2\n         x\n    c: 1\n"),
        ("a:\n    ? b\n    : c  \n", "a:\n    ? b\n    : c  \n"),
        // The order at the top.
        (
            "# doc\nspec:\n  x: 1\n  # in spec\n# of kind\nkind: K\n\nmetadata: {name: n}\nother: 1\napiVersion: v # v\n# end\n",
            "# doc\napiVersion: v # v\n# of kind\nkind: K\n\nmetadata: {name: n}\nspec:\n  x: 1\n  # in spec\nother: 1\n# end\n",
        ),
        ("kind: K\napiVersion: &a v\n", "kind: K\napiVersion: &a v\n"),
        ("name: n\nkind: k\n", "name: n\nkind: k\n"),
        ("ä: [ü,  ö]   # é\n日本:\n    - 語\n", "ä: [ü, ö]   # é\n日本:\n- 語\n"),
    ];
    let wrong = table.iter().filter(|(text, expected)| formatted(text) != *expected);
    let wrong: Vec<_> = wrong.map(|(text, expected)| (text, expected, formatted(text))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn examples() -> Vec<SourceFile> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut out = Vec::new();
    for directory in ["tests/broken", "tests/vectors", "../docs/examples/shop", "../fuzz/seeds/documents"] {
        for entry in fs::read_dir(top.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "yaml") {
                let name = path.display().to_string();
                out.push(SourceFile { text: fs::read(&path).unwrap(), name });
            }
        }
    }
    out
}

#[test]
fn what_ships_is_canonical() {
    let shop = examples().into_iter().filter(|file| file.name.contains("/shop/"));
    let files: Vec<_> =
        shop.map(|file| (format(&file).unwrap().text.into_bytes() == file.text, file.name)).collect();
    assert!(files.len() > 10 && files.iter().all(|(same, _)| *same), "{files:#?}");
}

/// Whatever a set says, and whatever is wrong with it.
#[test]
fn every_set_is_formatted_refused_or_left_alone() {
    let mut refused = 0;
    for file in examples() {
        match format(&file) {
            Ok(made) => {
                let again = SourceFile { name: file.name.clone(), text: made.text.clone().into_bytes() };
                assert_eq!(format(&again).unwrap().text, made.text, "{}", file.name);
                assert_eq!(made.left, None, "{}", file.name);
            }
            Err(errors) => {
                refused += 1;
                assert!(errors.iter().all(|error| error.line > 0), "{errors}");
            }
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn mistakes_have_their_place() {
    let errors = |text: &str| format(&file(text)).expect_err("it is no YAML").to_string();
    let told = errors("a: b\r\n---\r\nc:\r\n\t- d\r\n");
    assert!(told.contains("a.yaml:4:2") && told.contains("a tab stands where only spaces may"), "{told}");
    let told = errors("a: 1\n---\nb: 1\nb: 2\n");
    assert!(told.contains("a.yaml:4:1") && told.contains("stands here twice"), "{told}");
    assert!(errors("%YAML 1.1\n---\na: yes\n").contains("directives"));
    let told = errors("a: [\n---\nb: ]\n");
    assert!(told.contains("a.yaml:1:4") && told.contains("a.yaml:3:"), "{told}");
}

/// The comparison sees what a formatter may break.
#[test]
fn another_meaning_is_seen() {
    let same = same::says_the_same;
    assert!(same("b: 1\nkind: k\n", "kind: k\nb: 1\n"));
    for (old, new) in [
        ("a: 1\n", "a: 2\n"),
        ("a: 1\n", "a: \"1\"\n"),
        ("a: [1]\n", "a:\n- 1\n"),
        ("a: !x b\n", "a: b\n"),
        ("a: &x b\nc: *x\n", "a: b\nc: b\n"),
        ("a: |\n  b\n", "a: |-\n  b\n"),
        ("a: 1 # b\n", "a: 1\n"),
        ("a: 1\n# b\n", "a: 1\n# c\n"),
        ("a: 1\n---\nb: 1\n", "a: 1\n"),
        ("a: {x: 1, y: 2}\n", "a: {y: 2, x: 1}\n"),
        ("x: 1\ny: 2\n", "y: 2\nx: 1\n"),
        ("# b\n---\na: 1\n", "a: 1\n"),
    ] {
        assert!(!same(old, new), "{old} {new}");
    }
}

/// A line can be the whole file.
#[test]
fn large_files_take_no_square_of_time() {
    let flow = format!("a: [{}]\n", "{b:  1 } ,".repeat(10_000));
    let lines = format!("a:\n{}", "    - b:   1 # c\n\n\n".repeat(5_000));
    let comments = format!("{}a: 1\n", "# c\n".repeat(25_000));
    let begun = std::time::Instant::now();
    for text in [flow, lines, comments] {
        format(&file(&text)).unwrap();
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// A value in some indentation, as lines without the first's.
fn value(depth: u32) -> BoxedStrategy<Vec<String>> {
    let leaf = prop_oneof![
        Just(vec!["x".to_owned()]),
        Just(vec!["\"é  # no: comment\"".into()]),
        Just(vec!["'it''s'   # right".into()]),
        Just(vec!["{ a:  1,b : [x ,y ] }".into()]),
        Just(vec!["[a,".into(), "   b, # in".into(), "   ]".into()]),
        Just(vec!["|".into(), "   text: [ a ]".into(), "".into(), "     - more  ".into()]),
        Just(vec![">+ # head".into(), "  日本".into(), "".into(), "".into()]),
        Just(vec!["\"two".into(), "     lines \\".into(), "   x\"".into()]),
        Just(vec!["plain".into(), "  goes on".into()]),
        Just(vec!["!t   y".into()]),
        Just(vec!["|2".into(), "     x".into()]),
    ];
    leaf.prop_recursive(depth, 24, 4, |inner| {
        let comment = prop_oneof![Just(None), Just(Some("# c")), Just(Some("")), Just(Some("     # deep"))];
        let item = (inner, comment, 1..4_usize);
        (proptest::collection::vec(item, 1..4), any::<bool>(), 0..5_usize).prop_map(
            |(items, is_map, indent)| {
                let mut lines = vec![String::new()];
                for (n, (value, comment, gap)) in items.into_iter().enumerate() {
                    let pad = " ".repeat(indent + usize::from(is_map));
                    if let Some(comment) = comment {
                        lines.push(if comment.is_empty() {
                            String::new()
                        } else {
                            format!("{pad}{comment}")
                        });
                    }
                    let blanks = " ".repeat(gap);
                    let head = if is_map {
                        format!("{pad}k{n}:{blanks}{}", value[0])
                    } else {
                        format!("{pad}-{blanks}{}", value[0])
                    };
                    lines.push(head);
                    let rest = value[1..].iter();
                    lines.extend(
                        rest.map(|line| if line.is_empty() { String::new() } else { format!("{pad}{line}") }),
                    );
                }
                lines
            },
        )
    })
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn generated_documents_keep_their_meaning(
        fields in proptest::collection::vec(value(3), 1..4),
        swapped in any::<bool>(),
        anchored in any::<bool>(),
        crlf in any::<bool>(),
    ) {
        let names = if swapped { ["spec", "kind", "apiVersion"] } else { ["apiVersion", "kind", "spec"] };
        let mut text = String::from("# head\n");
        for (name, value) in names.iter().zip(&fields) {
            text.push_str(&format!("{name}: {}\n", value.join("\n")));
        }
        if anchored {
            text.push_str("x: &x [1 ,2]\ny:   *x\n");
        }
        let text = if crlf { text.replace('\n', "\r\n") } else { text };
        if let Ok(made) = format(&file(&text)) {
            // Whatever a text is that it cannot vouch for, these are none.
            prop_assert!(made.left.is_none(), "{text}\n{}", canonical(&unified(&text)).unwrap_or_default());
            let value = |text: &str| {
                let file = file(text);
                yaml::read_piece::<serde_json::Value>(&Text::new(&file, text), text, 1).map_err(|error| error.to_string())
            };
            prop_assert_eq!(value(&text), value(&made.text));
            let count = |text: &str| text.matches('#').count();
            prop_assert_eq!(count(&text), count(&made.text));
            prop_assert_eq!(&format(&file(&made.text)).unwrap().text, &made.text);
        }
    }

    /// No text makes it panic.
    #[test]
    fn any_text_is_answered(text in "[-a:#?|>+2 \n\t\r{}\\[\\],&*!'\"%é.]{0,60}") {
        if let Ok(made) = format(&file(&text)) && made.left.is_none() {
            prop_assert_eq!(&format(&file(&made.text)).unwrap().text, &made.text);
        }
    }
}
