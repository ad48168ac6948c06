#!/bin/sh
# spark.sh PROGRAM: tests tools/spark_pipe.py: its parts, then on a real Spark cluster of two executors on this
# machine, with an easel and an executor killed on the way. Spark is taken from build/venv, else from python3's own
# packages.
set -u
# shellcheck source=tests/checks.sh
. tests/checks.sh
easel=$(cd "$(dirname "$easel")" && pwd)/$(basename "$easel")
[ -z "$limit" ] || limit="timeout --foreground 300"
if ! command -v python3 >/dev/null; then
    skip spark "needs python3"
    end
fi

# ---- Without Spark: what a task does with an easel that dies or cannot start

cat >"$dir/dies" <<END
#!/bin/sh
# Answers five lines and is killed; with "never", is killed at once.
[ "\$2" = never ] && kill -KILL \$\$
head -n 5 | "$easel" pipe -t 1
kill -KILL \$\$
END
chmod +x "$dir/dies"
cat >"$dir/parts.py" <<'END'
import json, multiprocessing, os, sys, time
sys.path.insert(0, "tools")
sys.dont_write_bytecode = True
import spark_pipe
from types import SimpleNamespace as Space

easel, dies = sys.argv[1:]
lines = [(n, '{"id":"r%d","prompt":"What is 2 + %d?"}' % (n, n)) for n in range(10, 22)]

def check(name, ok, why=""):
    print("ok " + name if ok else f"FAIL {name}: {why}")

def refused(name, text, command):
    try:
        list(spark_pipe.answer(command, (), lines, lambda n: None))
        check(name, False, "no error")
    except spark_pipe.PipeError as error:
        check(name, text in str(error), error)

restarts = []
out = [json.loads(line) for line in spark_pipe.answer([dies, "pipe"], (), lines, restarts.append)]
check("an easel that dies is started again", len(restarts) == 2, restarts)
check("no line is lost or repeated", [line["id"] for line in out] == ["r%d" % n for n, _ in lines], out)
check("line is that of the input", [line["line"] for line in out] == [n for n, _ in lines], out)
refused("an easel that always dies", "was killed by signal 9 at line 10 of the input, attempt 3", [dies, "pipe", "never"])
refused("a wrong flag is not tried again", "ended with exit code 1 at line 10 of the input, attempt 1: easel: ",
        [easel, "pipe", "--frobnicate"])
refused("an easel that answers nothing", "ended with exit code 0", ["true"])

odd = [(1, '{"prompt":"What is 2 + 3?"}'), (2, "{bad"), (3, "{}"), (5, '{"cancel":"x"}'), (6, "[1]"), (7, '"cancel"'),
       (8, '{"x":' + 100000 * "[" + 100000 * "]" + ',"prompt":"Hi"}'), (9, '\ufeff{"prompt":"Hi"}'),
       (10, '{"\\u0063ancel":1}')]
out = {line["line"]: line for line in map(json.loads, spark_pipe.answer([easel, "pipe"], (), odd, restarts.append))}
check("a line without an id has its number", out[1]["id"] == 1 and out[1]["type"] == "done", out)
check("bad lines are errors", all(out[n]["type"] == "error" for n in (2, 3, 5, 6, 7, 8)), out)
check("a cancel is refused", all("expected a request" in out[n]["message"] for n in (5, 10)), out)
check("a byte-order mark is none of the line", out[9]["id"] == 9 and out[9]["type"] == "done", out)

raised = Exception("Job aborted:\nTraceback\n  PipeError: easel on vm ended\nDriver stacktrace:\n  at java.base")
check("a task's error is one line", spark_pipe.reason(raised) == "easel on vm ended", spark_pipe.reason(raised))

with spark_pipe.task_gpu({"gpu": Space(addresses=["3"])}, 0, 0) as (flags, fds):
    check("the GPU that Spark gives", flags == ["--device", "cuda:3"], flags)
with spark_pipe.task_gpu({}, 0, 5) as (flags, fds):
    check("no GPU, no flag", flags == [], flags)

def hold(first, report):
    with spark_pipe.gpu_lock(2, first) as (index, _):
        report.put((first, index))
        time.sleep(60)

report = multiprocessing.Queue()
holders = [multiprocessing.Process(target=hold, args=(first, report)) for first in (0, 2, 4)]
for holder in holders: holder.start()
held = dict(report.get(timeout=30) for _ in range(2))
check("two tasks have two GPUs", sorted(held.values()) == [0, 1], held)
time.sleep(0.3)
check("a third one waits", report.empty())
next(h for h, first in zip(holders, (0, 2, 4)) if first in held).kill()
check("until a task ends or is killed", report.get(timeout=30)[1] in (0, 1))
for holder in holders: holder.kill()
END
TMPDIR=$dir $limit python3 "$dir/parts.py" "$easel" "$dir/dies" >"$dir/parts.out" 2>"$dir/err"
status=$?
cat "$dir/parts.out"
passed=$((passed + $(grep -c '^ok ' "$dir/parts.out")))
failed=$((failed + $(grep -c '^FAIL ' "$dir/parts.out")))
check "the parts of spark_pipe.py ($(tail -n 1 "$dir/err"))" $status -eq 0

# ---- On a cluster

python=$PWD/build/venv/bin/python3
[ -x "$python" ] || python=$(command -v python3)
if ! "$python" -c 'import pyspark' 2>/dev/null; then
    skip "a Spark cluster" "needs pyspark (python3 -m venv build/venv; build/venv/bin/pip install pyspark)"
    end
fi
for program in java flock; do
    if ! command -v $program >/dev/null; then
        skip "a Spark cluster" "needs $program"
        end
    fi
done
# Short-lived programs start faster so. SPARK_LOCAL_IP: no name of this machine has to be known.
export JAVA_TOOL_OPTIONS="-XX:TieredStopAtLevel=1 -XX:+UseSerialGC" SPARK_LOCAL_IP=127.0.0.1 SPARK_LOCAL_DIRS="$dir"
export PYSPARK_PYTHON="$python" TMPDIR="$dir"
SPARK_HOME=$("$python" -c 'import os, pyspark; print(os.path.dirname(pyspark.__file__))')
export SPARK_HOME
spark() {  # spark MASTER ARGUMENTS...
    master=$1
    shift
    $limit "$SPARK_HOME/bin/spark-submit" --master "$master" --conf spark.ui.enabled=false tools/spark_pipe.py "$@" \
        </dev/null >"$dir/log" 2>&1
}

# In place of easel: notes which GPU it is given and whether that is free, and kills: the first one its easel, the second
# one the executor that it runs under, both after 50 answers.
cat >"$dir/worker" <<END
#!/bin/sh
shift  # pipe
device=
while [ \$# -gt 0 ]; do
    case \$1 in
        --device) device=\$2; shift ;;
        -t) echo "\$2" >>"$dir/threads"; shift ;;
    esac
    shift
done
exec 9>"$dir/busy.\$device"
flock -n 9 || echo "\$device" >>"$dir/collisions"
echo "\$device" >>"$dir/devices"
mkfifo "$dir/answers.\$\$"
exec 8<&0  # \`&\` would give easel an empty stdin
"$easel" pipe -t 1 --device cpu <&8 >"$dir/answers.\$\$" &
easel=\$!
exec <"$dir/answers.\$\$"
if mkdir "$dir/easel_killed" 2>/dev/null; then
    head -n 50
    kill -KILL \$easel
elif mkdir "$dir/executor_killed" 2>/dev/null; then
    head -n 50
    pid=\$\$
    until grep -qs CoarseGrainedExecutorBackend "/proc/\$pid/cmdline"; do
        pid=\$(sed -n 's/^PPid:[^0-9]*//p' "/proc/\$pid/status")
        [ "\${pid:-0}" -gt 1 ] || exit 3
    done
    kill -KILL "\$pid" && echo "\$pid" >"$dir/executor_killed/pid"
else
    cat
fi
wait \$easel
END
chmod +x "$dir/worker"
awk 'BEGIN { for (i = 1; i <= 400; i++) {
    if (i % 100 == 0) print "{\"id\":\"r" i "\",\"prompt\":"  # broken
    else if (i % 100 == 50) print ""
    else if (i % 100 == 51) printf "{\"prompt\":\"What is %d + 2?\"}\n", i % 90 + 1
    else printf "{\"id\":\"r%d\",\"prompt\":\"What is %d + %d?\",\"seed\":%d}\n", i, i % 60 + 10, i % 30 + 1, i } }' >"$dir/in"
began=$(date +%s)
spark 'local-cluster[2,1,1024]' --easel "$dir/worker" --gpus 2 --parts 4 "$dir/in" "$dir/out"
status=$?
check "a cluster of two executors ($(($(date +%s) - began)) s): $(tail -n 1 "$dir/log")" $status -eq 0
has "it tells what it did" "396 lines in 4 parts: 392 done, 4 errors, " "$dir/log"
check "an easel was killed on the way" -d "$dir/easel_killed"
check "an executor was killed on the way" -s "$dir/executor_killed/pid"
check "Spark has noticed that" "$(grep -c 'Lost executor' "$dir/log")" -ge 1
cat "$dir"/out/part-* >"$dir/all"
sed 's/.*"line":\([0-9]*\)[,}].*/\1/' "$dir/all" >"$dir/numbers"
seq 400 | awk '$1 % 100 != 50' >"$dir/expected"
same "every line is answered once, in order" "$dir/numbers" "$dir/expected"
sed -n 's/^{"id":"r\([0-9]*\)".*/\1/p' "$dir/all" >"$dir/numbers"
seq 400 | awk '$1 % 100 != 50 && $1 % 100 != 51 && $1 % 100 != 0' >"$dir/expected"
same "every id once" "$dir/numbers" "$dir/expected"
check "lines without an id have their number" "$(grep -c '^{"id":[0-9]*,"type":"done"' "$dir/all")" -eq 4
grep '"id":"r' "$dir/in" | grep -v ':$' | "$easel" pipe -t 1 --device cpu 2>/dev/null | grep -o '"hash":"[^"]*"' >"$dir/expected"
grep '^{"id":"r.*"type":"done"' "$dir/all" | grep -o '"hash":"[^"]*"' >"$dir/numbers"
same "the answers are those of one easel" "$dir/numbers" "$dir/expected"
check "easel was started again" "$(wc -l <"$dir/devices")" -ge 6
check "no two at once on one GPU" ! -e "$dir/collisions"
check "on both GPUs" "$(sort -u "$dir/devices" | tr '\n' ' ')" = "cuda:0 cuda:1 "
check "with a core's threads" "$(sort -u "$dir/threads")" = 1

printf '{"id":"a","prompt":"hi"}\n{"id":"b","prompt":"hi"}\n{"id":"a","prompt":"hi"}\n' >"$dir/twice"
spark 'local[1]' --ship --easel "$easel" "$dir/twice" "$dir/out2"
check "an id that is there twice: exit 1" $? -eq 1
has "and where" 'spark_pipe: id "a" is on line 1 and on line 3, expected every id once' "$dir/log"
check "nothing is written" ! -e "$dir/out2"
rm -rf "$SPARK_HOME/work"  # the executors' logs
end
