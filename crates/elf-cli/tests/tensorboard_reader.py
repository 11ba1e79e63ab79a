"""Prints what TensorBoard's own reader finds in a folder, as JSON: scalars, texts and settings."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0})
events.Reload()
tags = events.Tags()
texts = {
    tag: [[event.step, [value.decode() for value in event.tensor_proto.string_val]] for event in events.Tensors(tag)]
    for tag in tags["tensors"]
    if not tag.startswith("_hparams_")
}
start = plugin_data_pb2.HParamsPluginData.FromString(
    events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
).session_start_info
print(
    json.dumps(
        {
            "scalars": {tag: [[event.step, event.value] for event in events.Scalars(tag)] for tag in tags["scalars"]},
            "texts": texts,
            "settings": {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()},
        }
    )
)
