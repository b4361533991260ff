"""Servers over HTTP or gRPC: each is a command in the environment of a peer, that listens on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from abc import abstractmethod
from concurrent.futures import Future
from typing import Any

import numpy as np

from ..clients import Client, FutureClient, HttpClient
from ..workloads import encode
from .base import JOB_VARIABLE, PORT_VARIABLE, Adapter

_LOOK_EVERY_S = 0.02
_STOP_S = 10.0


class Server(Adapter):
    """A server that a command starts."""

    def start(self) -> Client:
        self._port = free_port()
        told = {JOB_VARIABLE: json.dumps(self.job.to_dict()), PORT_VARIABLE: str(self._port)}
        variables = os.environ | told | self.variables()
        self._process = subprocess.Popen(self.command(), cwd=self.job.folder, env=variables)
        client = self.client()
        while not self._is_listening() or not self.is_ready(client):
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.command()[1:]} ended with exit code {self._process.returncode}")
            time.sleep(_LOOK_EVERY_S)
        return client

    def stop(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)

    @abstractmethod
    def command(self) -> list[str]:
        """Return what starts it."""

    def variables(self) -> dict[str, str]:
        """Return what it needs in its environment besides."""
        return {}

    @abstractmethod
    def client(self) -> Client:
        """Return a client."""

    def is_ready(self, client: Client) -> bool:
        """Return whether a server that listens answers: asked until it does, as a user would."""
        try:
            client.call(self.job.about.payload())
        except Exception:  # noqa: BLE001 - servers say in many ways that they are not ready
            return False
        return True

    def script(self, name: str, *options: str) -> list[str]:
        """Return the command of a module of `peers.servers`."""
        return [sys.executable, "-m", f"peers.servers.{name}", *options]

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


class LitServe(Server):
    """LitServe: FastAPI in front, a queue, worker processes."""

    def command(self) -> list[str]:
        return self.script("with_litserve")

    def client(self) -> Client:
        return HttpClient(self._port, "/predict")


class Mosec(Server):
    """mosec: a Rust front, worker processes on unix sockets."""

    def command(self) -> list[str]:
        options = ["--port", str(self._port), "--address", "127.0.0.1", "--path", f"{self.job.folder}/mosec"]
        limits = ["--timeout", "60000", "--max-request-size", str(64 << 20), "--log-level", "warning"]
        return self.script("with_mosec", *options, *limits)

    def client(self) -> Client:
        return HttpClient(self._port, "/inference")


class MlServer(Server):
    """MLServer: gRPC in front, a pool of processes behind queues.

    Bytes travel as one element of a BYTES tensor, in gRPC's raw contents: MLServer would make a Python list of the
    numbers of any other tensor, and JSON would be slower still.
    """

    def command(self) -> list[str]:
        settings = {
            "host": "127.0.0.1",
            "http_port": free_port(),
            "grpc_port": self._port,
            "grpc_max_message_length": 64 << 20,
            "parallel_workers": self.job.workers,
            "parallel_workers_timeout": 60,
            "metrics_endpoint": None,
            "debug": False,
        }
        model = {"name": "model", "implementation": "peers.servers.with_mlserver.Answerer"}
        for name, values in (("settings", settings), ("model-settings", model)):
            with open(f"{self.job.folder}/{name}.json", "w") as file:
                json.dump(values, file)
        return [f"{os.path.dirname(sys.executable)}/mlserver", "start", self.job.folder]

    def client(self) -> Client:
        import grpc
        from mlserver.grpc import dataplane_pb2 as messages
        from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

        limits = [(f"grpc.max_{one}_message_length", 64 << 20) for one in ("send", "receive")]
        stub = GRPCInferenceServiceStub(grpc.insecure_channel(f"127.0.0.1:{self._port}", limits))

        def request(payload: Any) -> Any:
            body = encode(payload)
            tensor = messages.ModelInferRequest.InferInputTensor(name="x", datatype="BYTES", shape=[1])
            raw = struct.pack("<I", len(body)) + bytes(body)
            return messages.ModelInferRequest(model_name="model", inputs=[tensor], raw_input_contents=[raw])

        def answer(response: Any) -> Any:
            return np.frombuffer(response.raw_output_contents[0][4:], np.float32)

        def send(payload: Any) -> Future[Any]:
            future: Future[Any] = Future()

            def pass_on(done: Any) -> None:
                if error := done.exception():
                    future.set_exception(error)
                else:
                    future.set_result(answer(done.result()))

            stub.ModelInfer.future(request(payload)).add_done_callback(pass_on)
            return future

        return FutureClient(send, lambda payload: answer(stub.ModelInfer(request(payload))))


class PyTriton(Server):
    """nvidia-pytriton: Triton Inference Server in front, threads of one Python process behind it.

    Asked over HTTP with binary tensors (the extension of the Open Inference Protocol).
    """

    def command(self) -> list[str]:
        return self.script("with_pytriton")

    def variables(self) -> dict[str, str]:
        """Have Triton load this interpreter's library: the system's may be of another patch level."""
        return {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"), "PYTRITON_HOME": self.job.folder}

    def client(self) -> Client:
        about = self.job.about
        tensor: dict[str, Any] = {"name": "x", "parameters": {"binary_data_size": about.size_bytes}}
        if about.shape:
            tensor |= {"shape": about.shape, "datatype": "FP32"}
        else:  # a text travels as its bytes
            tensor |= {"shape": [about.size_bytes], "datatype": "UINT8"}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        return HttpClient(
            self._port,
            "/v2/models/model/infer",
            {"Inference-Header-Content-Length": str(len(head))},
            frame=lambda payload: [head, encode(payload)],
            unframe=_tensor_of,
        )


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _tensor_of(body: bytes) -> bytes:
    """Return the tensor that stands behind the head of an answer, which says how long it is."""
    _, _, rest = body.partition(b'"binary_data_size":')
    return body[len(body) - int(re.match(rb"\d+", rest)[0]) :]
