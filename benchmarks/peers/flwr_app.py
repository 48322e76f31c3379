"""The Flower client: imported by name in every Ray actor, so that what it loads stays loaded."""

from __future__ import annotations

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.speed.case import Case

app = ClientApp()


@cache
def opened(folder: str) -> tuple[Case, nn.Module]:
    """Return the case and a model, once per process."""
    torch.set_num_threads(1)
    case = Case.open(folder)
    return case, case.module()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the broadcast and return the weights."""
    config = message.content["config"]
    case, model = opened(str(config["folder"]))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = case.visit(int(config["place"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=case.lr)
    for xs, ys in zip(x.split(case.batch), y.split(case.batch), strict=True):
        optimizer.zero_grad()
        cross_entropy(model(xs), ys).backward()
        optimizer.step()
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()),
                          "metrics": MetricRecord({"num-examples": len(y)})})
    return Message(content=content, reply_to=message)
