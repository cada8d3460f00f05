//! Weight files for tests: a valid one, which tests modify.
#![allow(dead_code, reason = "each test file uses its part")]

use chunkwise::nn::{ModelConfig, init};

/// The contents of a safetensors file. The file is written here, not by a library, so that it can be
/// malformed in every way.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) config: Option<String>,
    pub(crate) tensors: Vec<(String, &'static str, Vec<usize>, Vec<u8>)>,
}

/// The configuration of a small model.
pub(crate) const CONFIG: ModelConfig = ModelConfig {
    hidden_size: 8,
    num_heads: 2,
    num_layers: 2,
    chunk_size: 4,
    seq_len: 12,
    ..ModelConfig::new(3)
};

/// The options of this model that do not follow from the shapes of its tensors.
pub(crate) const JSON: &str = r#"{"num_heads": 2, "chunk_size": 4, "seq_len": 12, "feature_map": "elu"}"#;

fn bytes_of(data: &[f32]) -> Vec<u8> {
    data.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Numbers for tensors.
pub(crate) fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.7).sin()).collect()
}

impl File {
    /// A valid file: a model with a head and an input.
    pub(crate) fn good() -> Self {
        let mut flat = vec![0.0; CONFIG.parameters_len()];
        init(&CONFIG, 7, &mut flat).unwrap();
        let mut file = Self { config: Some(JSON.into()), tensors: Vec::new() };
        let mut at = 0;
        for parameter in CONFIG.parameters() {
            let data = &flat[at..][..parameter.len()];
            file.add(&parameter.to_string(), parameter.dims(), data);
            at += parameter.len();
        }
        file.add("head.kernel", &[8, 5], &numbers(40));
        file.add("head.bias", &[5], &numbers(5));
        file.add("input", &[2, 10, 3], &numbers(60));
        file
    }

    /// The same numbers as a model of lightning attention, which the names of its tensors identify.
    pub(crate) fn lightning() -> Self {
        let mut file = Self::good();
        for tensor in &mut file.tensors {
            tensor.0 = tensor.0.replace("fla_block_", "lightning_block_");
        }
        file
    }

    pub(crate) fn add(&mut self, name: &str, shape: &[usize], data: &[f32]) {
        self.tensors.push((name.into(), "F32", shape.into(), bytes_of(data)));
    }

    pub(crate) fn with(mut self, name: &str, shape: &[usize]) -> Self {
        self.add(name, shape, &vec![0.5; shape.iter().product()]);
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        let before = self.tensors.len();
        self.tensors.retain(|tensor| tensor.0 != name);
        assert!(self.tensors.len() < before, "{name} was there");
        self
    }

    pub(crate) fn config(mut self, json: &str) -> Self {
        self.config = Some(json.into());
        self
    }

    /// The entries of the file's header.
    pub(crate) fn entries(&self) -> Vec<String> {
        let mut entries = Vec::new();
        if let Some(config) = &self.config {
            entries.push(format!(
                r#""__metadata__": {{"config": {}}}"#,
                serde_json::Value::from(config.as_str())
            ));
        }
        let mut at = 0;
        for (name, dtype, shape, data) in &self.tensors {
            let end = at + data.len();
            entries.push(format!(
                r#""{name}": {{"dtype": "{dtype}", "shape": {shape:?}, "data_offsets": [{at}, {end}]}}"#
            ));
            at = end;
        }
        entries
    }

    /// The bytes of the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.with_header(&format!("{{{}}}", self.entries().join(", ")))
    }

    /// The bytes of the file with another header.
    pub(crate) fn with_header(&self, header: &str) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(self.tensors.iter().flat_map(|tensor| &tensor.3));
        bytes
    }
}
