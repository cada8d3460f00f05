//! Model files of arbitrary bytes, and valid files that are damaged: each returns an error, or a model that
//! runs.

use arbitrary::{Result, Unstructured};
use chunkwise::files::{self, ModelFile, Options, Tensor};

use crate::weights::{File, JSON};

pub(super) fn check(u: &mut Unstructured<'_>) -> Result<()> {
    match u.int_in_range(0..=9)? {
        0 => open(u.bytes(u.len())?),
        1 => {
            let _ = Options::from_json(&String::from_utf8_lossy(u.bytes(u.len())?));
        }
        kind => {
            let file = if kind < 8 { File::good() } else { File::lightning() };
            let mut config = JSON.to_string();
            for _ in 0..u.int_in_range(0..=2)? {
                config = replaced(u, &config)?;
            }
            open(&damaged(u, file.config(&config))?);
        }
    }
    Ok(())
}

/// Checks that a model runs if its file can be read, and that a forward and a stream agree on the shape of
/// the output.
fn open(bytes: &[u8]) {
    let Ok(file) = ModelFile::parse(bytes, &Options::default()) else { return };
    let mut blocks = Vec::new();
    let Ok(model) = file.model(&mut blocks, None, 1) else { return };
    let embed = file.config().embed_dim;
    let own = Tensor { shape: vec![2, 3, embed], data: vec![0.5; 6 * embed].into() };
    for input in [file.tensor("input").unwrap_or(own.clone()), own] {
        let results = [files::forward(&model, &input), files::stream(&model, &input)];
        let shapes = results.iter().map(|result| result.as_ref().ok().map(|output| &output.shape));
        let shapes = shapes.collect::<Vec<_>>();
        assert_eq!(shapes[0], shapes[1], "{results:?}");
        if let [Ok(output), _] = &results {
            let logits = files::logits(&model, output).expect("an output of this model");
            assert_eq!(logits.is_some(), model.head_len().is_some());
        }
    }
}

/// The bytes of a file in which some tensors, words of the header, bytes and the length may be changed.
pub(crate) fn damaged(u: &mut Unstructured<'_>, mut file: File) -> Result<Vec<u8>> {
    for _ in 0..u.int_in_range(0..=2)?.min(file.tensors.len().saturating_sub(1)) {
        let at = u.int_in_range(0..=file.tensors.len() - 1)?;
        match u.int_in_range(0..=2)? {
            0 => file.tensors[at].3 = u.bytes(u.len().min(file.tensors[at].3.len()))?.to_vec(),
            1 => file.tensors[at].0 = file.tensors[u.int_in_range(0..=at)?].0.clone(),
            _ => drop(file.tensors.remove(at)),
        }
    }
    let mut header = format!("{{{}}}", file.entries().join(", "));
    for _ in 0..u.int_in_range(0..=3)? {
        header = replaced(u, &header)?;
    }
    let mut bytes = file.with_header(&header);
    for _ in 0..u.int_in_range(0..=3)? {
        let at = u.int_in_range(0..=bytes.len() - 1)?;
        bytes[at] = u.arbitrary()?;
    }
    if u.ratio(1, 8)? {
        bytes.truncate(u.int_in_range(0..=bytes.len())?);
    }
    Ok(bytes)
}

/// JSON with one number or word replaced.
pub(crate) fn replaced(u: &mut Unstructured<'_>, json: &str) -> Result<String> {
    let starts: Vec<usize> = json
        .char_indices()
        .filter(|(at, c)| c.is_alphanumeric() && !json[..*at].ends_with(char::is_alphanumeric))
        .map(|(at, _)| at)
        .collect();
    if starts.is_empty() {
        return Ok(json.into());
    }
    let at = *u.choose(&starts)?;
    let end = json[at..].find(|c: char| !c.is_alphanumeric()).map_or(json.len(), |len| at + len);
    let new = match u.int_in_range(0..=5)? {
        0 => u.arbitrary::<u64>()?.to_string(),
        1 => u.int_in_range(0..=300)?.to_string(),
        2 => u.arbitrary::<f64>()?.to_string(),
        3 => (*u.choose(&[
            "all",
            "mean",
            "relu",
            "identity",
            "BF16",
            "F16",
            "I64",
            "true",
            "null",
            "output_mode",
        ])?)
        .into(),
        4 => (*u.choose(&["[]", "{}", "\"", "-", "1e400", "[[[[[[", "9e9999999999"])?).into(),
        // The new word is another word of the same text.
        _ => {
            let from = *u.choose(&starts)?;
            json[from..].split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().into()
        }
    };
    let new: String = new;
    Ok([&json[..at], &new, &json[end..]].concat())
}
