#!/bin/bash
# The same small grid through a real Slurm on this machine, two tasks at a time, and in one process: the
# tables must be equal. One task is killed on the way and submitted again.
# Needs slurm-wlm and munge (apt-get install --no-install-recommends slurm-wlm munge), and root.
#
#   tests/slurm.sh target/release/stillhouse          a grid of tiny networks, a minute
#   tests/slurm.sh target/release/stillhouse whole    Table 3's quick profile as it is, less than half an hour
set -euo pipefail
program=$(realpath "$1")
for tool in slurmctld slurmd sbatch munged; do
  command -v $tool >/dev/null || PATH=$PATH:/usr/sbin command -v $tool >/dev/null || {
    echo "error: $tool was not found; apt-get install --no-install-recommends slurm-wlm munge"; exit 2; }
done
export PATH=$PATH:/usr/sbin
work=$(mktemp -d)
host=$(hostname -s)
export SLURM_CONF=$work/slurm.conf
mkdir "$work/state" "$work/spool"
own_munge=
if ! pgrep -x munged >/dev/null; then
  install -d -m 755 -o munge -g munge /run/munge
  su -s /bin/sh munge -c /usr/sbin/munged
  own_munge=1
fi
cat >"$SLURM_CONF" <<CONF
ClusterName=loop
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/ctld.pid
SlurmdPidFile=$work/d.pid
SlurmctldLogFile=$work/ctld.log
SlurmdLogFile=$work/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
CONF
finish() {
  kill "$(cat "$work/ctld.pid")" "$(cat "$work/d.pid")" 2>/dev/null || true
  if [ -n "$own_munge" ]; then kill "$(cat /run/munge/munged.pid)" 2>/dev/null || true; fi
}
trap finish EXIT
slurmctld -c && slurmd -N "$host"
until sinfo -h -o %T | grep -q idle; do sleep 0.2; done

cd "$work"
grid=(table3 --profile quick
  --set 'data.per_class=[4, 2]' --set data.image_size=32
  --set "data.train_transforms=[{ op = 'resize', width = 32, height = 32 }]"
  --set "data.test_transforms=[{ op = 'resize', width = 32, height = 32 }]"
  --set teacher.model=resnet18 --set 'teacher.weights=imagenet|scratch' --set teacher.train.epochs=2 --set train.epochs=4
  --set "train.checkpoint='1 steps'" --set "teacher.train.checkpoint='1 steps'"
  --set "matrix.method=['baseline', 'kd', 'class_centric', 'sp']" --set "matrix.student=['mobilenetv2_100']")
if [ "${2:-small}" = whole ]; then grid=(table3 --profile quick); fi
echo "-- in one process"
"$program" reproduce "${grid[@]}" --threads 1 --runs one >one.txt
echo "-- through Slurm; the first student that runs is killed"
"$program" submit slurm "${grid[@]}" --runs many --max-tasks 2
killed=
for _ in $(seq 12000); do
  # A student that has written a checkpoint, and a task of students that runs.
  if compgen -G 'many/table3/quick/*/checkpoint-*' >/dev/null; then
    task=$(squeue -h -r -t R -o '%i %j' | awk '/stillhouse-students/ { print $1; exit }')
    if [ -n "$task" ] && scancel --batch --signal=KILL "$task"; then killed=$task; break; fi
  fi
  sleep 0.05
done
echo "killed: ${killed:-nothing}"
while [ -n "$(squeue -h)" ]; do sleep 0.5; done
open=$("$program" reproduce "${grid[@]}" --runs many --plan --json | grep -c '"pending"' || true)
echo "cells that are not finished now: $open"
echo "-- submitted again"
"$program" submit slurm "${grid[@]}" --runs many --max-tasks 2 --wait
python3 - <<'CHECK'
import json, pathlib
def cells(root):
    return [{k: c[k] for k in ("method", "student", "dataset", "ratio", "state", "mean", "correct", "total")}
            for c in json.loads(pathlib.Path(root, "table3/quick/table.json").read_text())["cells"]]
def hashes(root):
    return {p.parent.name: json.loads(p.read_text())["student_sha256"] for p in sorted(pathlib.Path(root).rglob("result.json"))}
one, many = cells("one"), cells("many")
assert one == many, (one, many)
assert all(c["state"] == "done" for c in many), many
assert hashes("one") == hashes("many") and len(hashes("one")) > 8
print(f"equal: {len(many)} cells, {len(hashes('one'))} networks with the same bytes")
CHECK
[ -n "$killed" ] && [ "$open" -ge 1 ] || { echo "error: no task was killed in time"; exit 1; }
# The daemons' numbers stand in this folder.
trap - EXIT
finish
rm -rf "$work"
