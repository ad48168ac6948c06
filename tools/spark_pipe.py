"""Answers JSON lines on a cluster: Apache Spark runs `easel pipe` in each of its tasks.

usage: spark-submit [Spark's options] spark_pipe.py [options] INPUT OUTPUT [-- flags of easel pipe]

INPUT has requests as `easel pipe` takes them (`easel pipe --schema`), a file, a folder or a pattern that Spark can
read. OUTPUT is a folder that Spark makes; its files, one after the other, have the answers in the order of the input.
A line without an id gets its number as id; "line" counts over the whole input. Two lines must not have the same id.

A task whose easel dies starts another one with the lines that have no answer yet; Spark runs a lost task again, and
only whole tasks get into OUTPUT. At the end OUTPUT is read back: every line must be answered exactly once.

GPUs: a task that Spark gives one (spark.task.resource.gpu.amount) uses that one. Elsewhere, with --gpus N, a task takes
the first of the machine's N GPUs that no other task of this user holds, and waits if there is none.
"""

import argparse
import collections
import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

ATTEMPTS = 3  # of easel in a row that answer nothing; then the task fails, and Spark may try another machine


class PipeError(Exception):
    """What ends the job: one line for the user."""


def request_id(text, number):
    """The line as it is sent, and the id it will be answered with; None where easel will say what is wrong."""
    text = text.removeprefix("\ufeff")  # as easel takes it
    try:
        request = json.loads(text)
    except (ValueError, RecursionError):
        return text, None
    if not isinstance(request, dict):
        return text, None
    if "id" in request:
        return text, request["id"]
    rest = text.lstrip(" \t\r")[1:]
    return f'{{"id":{number}{"," if request else ""}{rest}', number


def is_cancel(text):
    if "cancel" not in text and "\\u" not in text:
        return False
    try:
        return "cancel" in json.loads(text.removeprefix("\ufeff"))
    except (ValueError, TypeError, RecursionError):
        return False


def dump(line):
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


@contextlib.contextmanager
def gpu_lock(n_gpu, first):
    """One of the machine's GPUs, as (index, file descriptor of the lock). Who inherits the descriptor holds it too."""
    name = os.path.join(tempfile.gettempdir(), f"easel-{os.getuid()}-gpu-")
    while True:
        for i in range(n_gpu):
            index = (first + i) % n_gpu
            fd = os.open(f"{name}{index}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            try:
                yield index, fd
            finally:
                os.close(fd)
            return
        time.sleep(0.1)


@contextlib.contextmanager
def task_gpu(resources, n_gpu, partition):
    """What to start easel with: flags, and descriptors that it keeps."""
    if "gpu" in resources:
        yield ["--device", "cuda:" + resources["gpu"].addresses[0]], ()
    elif n_gpu:
        with gpu_lock(n_gpu, partition) as (index, fd):
            yield ["--device", f"cuda:{index}"], (fd,)
    else:
        yield [], ()


def run_easel(command, keep_fds, lines, errors):
    """One easel, fed with `lines` (bytes). Yields (place in `lines`, what is said about it). Returns its exit code."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        pass_fds=keep_fds,
        env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},  # the order in which Spark counts GPUs
    )

    def feed():
        with contextlib.suppress(OSError):  # it has ended
            for text in lines:
                process.stdin.write(text + b"\n")
        with contextlib.suppress(OSError):
            process.stdin.close()

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        said = []
        for text in process.stdout:
            if not text.endswith(b"\n"):
                break  # it died while it wrote this
            line = json.loads(text)
            said.append(line)
            if line["type"] in ("done", "error"):
                yield line["line"] - 1, said
                said = []
        code = process.wait()
    finally:
        process.kill()  # also where nobody wants the rest
        process.wait()
        process.stdout.close()
        feeder.join()
    return code


def answer(command, keep_fds, numbered, on_restart):
    """Lines out for `numbered`, a list of (number, line). Each gets its answer exactly once, or there is a PipeError."""
    waiting = collections.OrderedDict()
    ids = {}
    for number, text in numbered:
        sent, ids[number] = request_id(text, number)
        if is_cancel(text):
            message = "cancel is for a running easel pipe, expected a request"
            yield dump({"id": ids[number], "type": "error", "line": number, "message": message})
        else:
            waiting[number] = sent.encode("utf-8", "replace")

    n_attempt = 0
    while waiting:
        numbers = list(waiting)
        n_answered = 0
        with tempfile.TemporaryFile() as errors:
            easel = run_easel(command, keep_fds, [waiting[n] for n in numbers], errors)
            while True:
                try:
                    place, said = next(easel)
                except StopIteration as end:
                    code = end.value
                    break
                number = numbers[place]
                if number not in waiting:
                    raise PipeError(f"easel answered line {number} twice")
                if said[-1]["id"] not in (ids[number], None):
                    raise PipeError(f"easel answered line {number} with id {said[-1]['id']}, expected {ids[number]}")
                for line in said:
                    if "line" in line:
                        line["line"] = number
                    yield dump(line)
                del waiting[number]
                n_answered += 1
            if not waiting:
                return
            errors.seek(0)
            last = (errors.read().decode("utf-8", "replace").strip().splitlines() or ["it says nothing"])[-1]
        n_attempt = 1 if n_answered else n_attempt + 1
        if (code == 1 and not n_answered) or n_attempt == ATTEMPTS:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise PipeError(
                f"easel on {socket.gethostname()} {how} at line {next(iter(waiting))} of the input, "
                f"attempt {n_attempt}: {last}"
            )
        on_restart(1)


def program(easel, shipped):
    """The path of easel on this machine."""
    from pyspark import SparkFiles

    path = SparkFiles.get(os.path.basename(easel)) if shipped else shutil.which(easel)
    if not path or not os.access(path, os.X_OK):
        raise PipeError(
            f"{socket.gethostname()} has no program {easel}: install it there, give its path with --easel, "
            "or send it along with --ship"
        )
    return path


def task(options, restarts, partition, rows):
    """What a Spark task does: lines of one partition in, lines out."""
    from pyspark import TaskContext

    context = TaskContext.get()
    command = [program(options.easel, options.ship), "pipe"]
    if not {"-t", "--threads"} & set(options.flags):
        command += ["-t", str(context.cpus())]
    numbered = list(rows)
    if not numbered:
        return
    with task_gpu(context.resources(), options.gpus, partition) as (device, keep_fds):
        yield from answer(command + device + options.flags, keep_fds, numbered, restarts.add)


def check_ids(numbered):
    """How many requests there are, and the number of the last one. PipeError if two have one id."""

    def keyed(row):
        number, text = row
        return dump(request_id(text, number)[1]), (1, number, number)

    def merge(a, b):
        return a[0] + b[0], min(a[1], b[1]), max(a[2], b[2])

    def summary(row):
        key, (n, first, last) = row
        return n, last, (key, first, last) if n > 1 and key != "null" else None

    ids = numbered.map(keyed).reduceByKey(merge).map(summary)
    n_request, last, twice = ids.fold((0, 0, None), lambda a, b: (a[0] + b[0], max(a[1], b[1]), a[2] or b[2]))
    if twice:
        raise PipeError("id {} is on line {} and on line {}, expected every id once".format(*twice))
    return n_request, last


def check_output(lines, n_request):
    """Numbers of done and error lines. PipeError unless each request has exactly one of them."""

    def last_line(text):
        line = json.loads(text)
        kind = line["type"]
        return [(line["line"], (kind == "done", kind == "error"))] if kind in ("done", "error") else []

    def add(a, b):
        return tuple(x + y for x, y in zip(a, b))

    answered = lines.flatMap(last_line).reduceByKey(add).map(lambda row: (1, *row[1]))
    n_line, n_done, n_error = answered.fold((0, 0, 0), add)
    if not n_line == n_done + n_error == n_request:
        raise PipeError(f"{n_line} of {n_request} lines have an answer, {n_done + n_error} answers in all")
    return n_done, n_error


def run(options):
    from pyspark import SparkConf, SparkContext

    context = SparkContext.getOrCreate(SparkConf().setAppName("easel pipe"))
    context.setLogLevel("ERROR")
    if options.ship:
        if not os.access(options.easel, os.X_OK):
            raise PipeError(f"{options.easel}: is no program here, expected the path of easel")
        context.addFile(options.easel)

    lines = context.textFile(options.input).zipWithIndex().map(lambda row: (row[1] + 1, row[0]))
    numbered = lines.filter(lambda row: row[1].strip(" \t\r"))
    n_request, last = check_ids(numbered)
    n_part = max(1, min(options.parts or context.defaultParallelism, n_request))
    # Parts of the input in its order. Not repartition(): where a line goes must be the same when a task runs again.
    parts = numbered.repartitionAndSortWithinPartitions(n_part, lambda number: (number - 1) * n_part // last)
    restarts = context.accumulator(0)
    began = time.monotonic()
    parts.mapPartitionsWithIndex(lambda part, rows: task(options, restarts, part, rows)).saveAsTextFile(options.output)
    seconds = time.monotonic() - began
    n_done, n_error = check_output(context.textFile(options.output), n_request)
    print(
        f"spark_pipe: {n_request} lines in {n_part} parts: {n_done} done, {n_error} errors, {seconds:.1f} s; "
        f"easel was started again {restarts.value} times",
        file=sys.stderr,
    )
    context.stop()


def reason(error):
    """One line of what Spark raised."""
    if isinstance(error, PipeError):
        return str(error)
    found = re.findall(r"PipeError: (.*)", str(error))
    if found:
        return found[-1]
    if hasattr(error, "java_exception"):
        error = error.java_exception.getMessage() or error
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main():
    about, _, more = __doc__.partition("\n\n")
    usage, _, more = more.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, usage=usage.removeprefix("usage: "), epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="INPUT")
    parser.add_argument("output", metavar="OUTPUT")
    parser.add_argument("--easel", default="easel", help="path of the program on every machine (default: on the PATH)")
    parser.add_argument("--ship", action="store_true", help="send the driver's --easel to every machine")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs of a machine that tasks share out")
    parser.add_argument("--parts", type=int, default=0, metavar="N", help="tasks (default: one a core of the cluster)")
    arguments = sys.argv[1:]
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:at])
    options.flags = arguments[at + 1 :]
    try:
        run(options)
    except Exception as error:
        print("spark_pipe:", reason(error), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
