"""A gRPC server whose calls do what tests need; messages are bytes, so no compiler of .proto files is.

`python -m tests.system.apps.grpc_calls PORT`. It says on stdout when a call that hangs has ended.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc

SERVICE = "test.Calls"
MOST = 64 * 1024 * 1024


def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
    """The request, with what came of the metadata that begins with x-."""
    sent = [(key, value) for key, value in context.invocation_metadata() or () if key.startswith("x-test")]
    context.send_initial_metadata((("x-initial", "1"), ("x-initial-bin", b"\0\xff")))
    context.set_trailing_metadata((*sent, ("under_score", "1"), ("x-left", str(context.time_remaining()))))
    return request


def refuse(_request: bytes, context: grpc.ServicerContext) -> bytes:
    """An error without an answer (trailers only), with details."""
    context.set_trailing_metadata((("grpc-status-details-bin", b"\0why\xff"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: 100 % ä")


def count(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """So many messages of the size behind the blank, and then an error if anything follows."""
    number, size, *error = request.split()
    for _ in range(int(number)):
        yield bytes(int(size))
    if error:
        context.abort(grpc.StatusCode.DATA_LOSS, "too late")


def total(requests: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
    return b"%d" % sum(len(request) for request in requests)


def talk(requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
    for request in requests:
        yield b"<" + request + b">"


def hang(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Answer once, then wait for the client to leave."""
    over = threading.Event()
    context.add_callback(over.set)
    print("began", request.decode(), flush=True)
    if request != b"silent":
        yield request
    over.wait()
    print("ended", request.decode(), flush=True)


def serve(port: int) -> None:
    server = grpc.server(
        futures.ThreadPoolExecutor(100),
        options=[("grpc.max_receive_message_length", MOST), ("grpc.so_reuseport", 0)],
    )
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Total": grpc.stream_unary_rpc_method_handler(total),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Hang": grpc.unary_stream_rpc_method_handler(hang),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
