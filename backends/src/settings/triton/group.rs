//! `instance_group` of `config.pbtxt`: on which devices an ONNX model runs, and how often.

use super::{Fields, messages, note, sort};
use crate::pbtxt::{Message, Value};
use crate::settings::{Device, InstanceGroup};

const FIELDS: Fields = Fields {
    place: "instance_group.",
    acting: &["count", "kind", "gpus", "passive"],
    without_effect: &[
        ("name", "groups are told apart by their order"),
        ("profile", "only engines of TensorRT have profiles"),
        ("rate_limiter", "as many calls run as there are instances"),
        ("host_policy", "threads are the server's, wherever they run"),
    ],
    refused: &[("secondary_devices", "an instance runs on one device")],
};

/// One group for each device.
pub(super) fn read(config: &Message, notes: &mut Vec<String>) -> Result<Vec<InstanceGroup>, String> {
    let mut groups = Vec::new();
    for group in messages(config, "instance_group")? {
        sort(group, &[&FIELDS], notes)?;
        if group.flag("passive")? == Some(true) {
            return Err("field 'instance_group.passive' is not served: every instance takes requests".into());
        }
        let count = group.parsed::<usize>("count")?.filter(|count| *count > 0).unwrap_or(1);
        groups.extend(devices(group, notes)?.into_iter().map(|device| InstanceGroup { count, device }));
    }
    Ok(groups)
}

fn devices(group: &Message, notes: &mut Vec<String>) -> Result<Vec<Device>, String> {
    let mut gpus = Vec::new();
    for value in group.all("gpus") {
        let Value::Scalar(text) = value else { return Err("'gpus' of 'instance_group' are whole numbers".into()) };
        let number: u32 =
            text.parse().map_err(|_| format!("'gpus' of 'instance_group' has '{text}', which is no GPU"))?;
        gpus.push(Device::Gpu(number));
    }
    match (group.text("kind")?.unwrap_or("KIND_AUTO"), gpus.is_empty()) {
        ("KIND_AUTO" | "KIND_GPU", false) => Ok(gpus),
        ("KIND_AUTO", true) => Ok(vec![Device::Auto]),
        ("KIND_CPU", true) => Ok(vec![Device::Cpu]),
        ("KIND_GPU", true) => {
            let what = "is on GPU 0 alone; list those that it is to be on";
            note(notes, format!("'instance_group' of KIND_GPU without 'gpus' {what}"));
            Ok(vec![Device::Gpu(0)])
        }
        ("KIND_CPU", false) => Err("'gpus' of an instance_group of KIND_CPU: state KIND_GPU, or leave them out".into()),
        ("KIND_MODEL", _) => {
            Err("kind 'KIND_MODEL' of an instance_group is not served: state KIND_AUTO, KIND_CPU or KIND_GPU".into())
        }
        (other, _) => {
            Err(format!("kind '{other}' of an instance_group is not known; expected KIND_AUTO, KIND_CPU or KIND_GPU"))
        }
    }
}
