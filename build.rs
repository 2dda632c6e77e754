//! Generates the API types from `proto/`, twice.
//!
//! * `OUT_DIR/client`: the types as the files say.
//! * `OUT_DIR/server`: the same, but every field of type `RecordBatch` is a `bytes` field. The wire
//!   form of the two is identical, so a server takes a batch as a slice of its receive buffer,
//!   stores that slice and never encodes a record again.
//! * `OUT_DIR/descriptors.bin`: the files' own descriptors, for reflection.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const PROTO_ROOT: &str = "proto";
/// What encodes and decodes the messages of all calls.
const CODEC: &str = "crate::proto::codec::ExactCodec";
const OPAQUE_MESSAGE: &str = ".quipu.v1.RecordBatch";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={PROTO_ROOT}");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new([PROTO_ROOT])?;
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(proto_files(Path::new(PROTO_ROOT))?)?;
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    let descriptors = compiler.file_descriptor_set();
    generate(&out.join("client"), descriptors.clone())?;
    generate(&out.join("server"), with_opaque_batches(descriptors))
}

/// Lists the .proto files below `dir`, sorted, so that the output does not depend on the disk.
fn proto_files(dir: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(proto_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn generate(out: &Path, descriptors: FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(out)?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    let services = tonic_prost_build::configure().codec_path(CODEC).out_dir(out);
    services.compile_fds_with_config(descriptors, config)?;
    Ok(())
}

fn with_opaque_batches(mut descriptors: FileDescriptorSet) -> FileDescriptorSet {
    for file in &mut descriptors.file {
        file.message_type.iter_mut().for_each(make_batches_opaque);
    }
    descriptors
}

fn make_batches_opaque(message: &mut DescriptorProto) {
    message.field.iter_mut().filter(|field| is_batch(field)).for_each(|field| {
        field.set_type(Type::Bytes);
        field.type_name = None;
    });
    message.nested_type.iter_mut().for_each(make_batches_opaque);
}

fn is_batch(field: &FieldDescriptorProto) -> bool {
    field.type_name.as_deref() == Some(OPAQUE_MESSAGE)
}
