"""What a stranger tries who knows where a Ray cluster is: ``python ray_stranger.py GCS ACTOR``; prints what worked."""

from __future__ import annotations

import os
import sys
import time

os.environ |= {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

import grpc
import ray
from ray.core.generated import core_worker_pb2, core_worker_pb2_grpc, gcs_service_pb2, gcs_service_pb2_grpc


def attempts(gcs: str, actor: str) -> dict:
    """Return what to try, by name."""
    def join() -> None:
        ray.init(address=gcs, log_to_driver=False, logging_level="CRITICAL")

    def task() -> None:
        ray.get(ray.remote(os.getpid).remote(), timeout=3)

    def read() -> None:
        ray._raylet.GcsClient(address=gcs).internal_kv_keys(b"", None)

    def nodes() -> None:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(grpc.insecure_channel(gcs))
        stub.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=3)

    def kill() -> None:
        stub = core_worker_pb2_grpc.CoreWorkerServiceStub(grpc.insecure_channel(actor))
        stub.KillActor(core_worker_pb2.KillActorRequest(force_kill=True), timeout=3)

    def fetch() -> None:
        stub = core_worker_pb2_grpc.CoreWorkerServiceStub(grpc.insecure_channel(actor))
        stub.GetObjectStatus(core_worker_pb2.GetObjectStatusRequest(), timeout=3)

    return {"join": join, "task": task, "read": read, "nodes": nodes, "kill": kill, "fetch": fetch}


if __name__ == "__main__":
    for name, attempt in attempts(*sys.argv[1:]).items():
        began = time.monotonic()
        if name == "task" and not ray.is_initialized():
            continue    # it would start a cluster of its own
        try:
            attempt()
        except Exception as e:
            print(f"{name} refused {type(e).__name__} {time.monotonic() - began:.1f} {' '.join(str(e).split())[:200]}")
        else:
            print(f"{name} worked")
