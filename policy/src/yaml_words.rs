//! The parser's sentences in the words of people who write documents, each with a way out.

/// What a sentence of the parser is about, by words in it: what is told instead (`None`: the sentence itself), and the way
/// out. The first that fits.
const WORDS: &[(&str, Option<&str>, &str)] = &[
    (
        "expected mapping start",
        Some("expected fields (`name: value`) here"),
        "write `{name: value}`, or each field on a line of its own, indented alike",
    ),
    (
        "expected sequence start",
        Some("expected a list (`[a, b]`) here"),
        "write it in brackets, or each item on a line of its own behind `- `",
    ),
    (
        "cannot deserialize null",
        Some("nothing stands here where a value is expected"),
        "write the value, or leave the item out",
    ),
    (
        "a port is a number",
        None,
        "write it in digits and without quotes, such as 8080; names of ports are not known here",
    ),
    ("a whole number is expected", None, "write it in digits and without quotes, such as 100"),
    ("a length of time is written", None, "write a whole number and its unit, without a space between them"),
    ("unclosed bracket", None, "every `[` needs its `]`, every `{` its `}`"),
    ("mismatched bracket", None, "every `[` needs its `]`, every `{` its `}`"),
    ("unclosed quote", None, "end the text with the quote that it begins with"),
    (
        "merge keys are not allowed",
        Some("`<<` takes in fields from elsewhere, which is not read here"),
        "write the fields themselves, so that everybody sees what is in force",
    ),
    (
        "scanning an anchor or alias",
        Some("`*` and `&` at the start of a text begin a reference in YAML"),
        "put the text in quotes: `\"*\"`",
    ),
    (
        "unknown anchor",
        Some("this refers to an `&anchor` that does not stand before it"),
        "put a text that begins with `*` in quotes, or write the value itself",
    ),
    ("tabs disallowed", Some("a tab stands where only spaces may"), "indent with spaces"),
    ("found a tab", Some("a tab stands where only spaces may"), "indent with spaces"),
    ("start with a tab", Some("a tab stands where only spaces may"), "indent with spaces"),
    (
        "BOM must not",
        Some("a byte order mark (U+FEFF) stands within the file"),
        "remove it: it may only begin a file, and is left over where files were put one behind the other",
    ),
    (
        "invalid boolean",
        Some("this is either `true` or `false`"),
        "write one of them; `yes`, `on` and `1` are texts and numbers in YAML 1.2",
    ),
    (
        "unexpected character",
        Some("a control character stands here"),
        "remove it: files of documents hold text",
    ),
    (
        "mapping values are not allowed",
        Some("no field can begin here"),
        "fields that belong together begin in the same column; a text that holds `: ` stands in quotes",
    ),
    (
        "did not find expected",
        Some("this does not go on with what stands before it"),
        "fields that belong together begin in the same column; `---` between documents begins in the first",
    ),
    (
        "invalid ",
        None,
        "compare it with the reference of this kind, or with what `postern policy schema` says",
    ),
];

/// A sentence of the parser, and the way out.
pub(crate) fn plain(sentence: &str) -> (String, Option<String>) {
    match WORDS.iter().find(|(word, _, _)| sentence.contains(word)) {
        Some((_, told, help)) => (told.unwrap_or(sentence).to_owned(), Some((*help).to_owned())),
        None => (sentence.to_owned(), None),
    }
}

/// How a field that is missing is written.
pub(crate) fn missing(field: &str) -> String {
    let example = match field {
        "apiVersion" => format!("write `apiVersion: {}`", crate::doc::API_VERSION),
        "kind" => "write `kind`, and what the document is".to_owned(),
        "metadata" => "write `metadata: {name: …, namespace: …}`".to_owned(),
        "namespace" => "write `namespace`: a document acts on the workloads of its own".to_owned(),
        "name" => "write `name`: logs and other documents call it so".to_owned(),
        "action" => "write `action: Allow`, `Deny` or `Audit`".to_owned(),
        "rules" => "write `rules: [{name: …}]`; a policy without rules does nothing".to_owned(),
        field => format!("write `{field}` beside this"),
    };
    format!("{example} (in the column of the fields beside it)")
}
