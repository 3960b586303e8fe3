#!/usr/bin/env bash
# A SLURM of one node, in a folder of its own, beside any other: no systemd, no shared state.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: .ci/slurm.sh start|stop [--folder DIR] [--port N] [--cpus N] [--gpus N]

start   install what is missing (Debian's packages; needs root), start munged, slurmctld and slurmd
        in DIR, wait until the node is idle, and print the line that makes sbatch use it:
            export SLURM_CONF=DIR/slurm.conf
        so:  eval "$(.ci/slurm.sh start)"
        Starting again starts only what does not run; jobs and their queue are kept.
stop    cancel its jobs and end its daemons, by process id. DIR stays, with the daemons' logs.

--folder DIR   where all of it lies (/tmp/fdllm-slurm-PORT)
--port N       slurmctld listens on N, slurmd on N+1 (6817): several people each take their own
--cpus N       processors that jobs are given, whatever the machine has (as many as it has)
--gpus N       GPUs that jobs may ask for; they are counted, there is nothing behind them (0)

Differences from a cluster: a job that ignores SIGTERM is killed after 10 seconds instead of 30,
and there is no accounting (no sacct). As on a cluster, a requeued job waits two minutes;
`scontrol update jobid=JOB starttime=now` ends the wait.
TEXT
}

port=6817 folder='' cpus=$(nproc) gpus=0
command=${1:-}
case $command in
start | stop) shift ;;
-h | --help) usage && exit 0 ;;
*) usage >&2 && exit 2 ;;
esac
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || { usage >&2 && exit 2; }
    case $1 in
    --folder) folder=$2 ;;
    --port) port=$2 ;;
    --cpus) cpus=$2 ;;
    --gpus) gpus=$2 ;;
    *) echo "unknown flag '$1'" >&2 && usage >&2 && exit 2 ;;
    esac
    shift 2
done
folder=${folder:-/tmp/fdllm-slurm-$port}
export SLURM_CONF=$folder/slurm.conf
export PATH=$PATH:/usr/sbin
# A job inherits nothing of the job or step that this may be called from.
unset "${!SLURM_JOB@}" "${!SLURM_STEP@}"

install_packages() {
    local missing=()
    command -v munged >/dev/null || missing+=(munge)
    command -v slurmctld >/dev/null || missing+=(slurmctld)
    command -v slurmd >/dev/null || missing+=(slurmd)
    command -v sbatch >/dev/null || missing+=(slurm-client)
    [ ${#missing[@]} -gt 0 ] || return 0
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

write_configuration() {
    [ ! -e "$SLURM_CONF" ] || return 0
    local node memory_mb
    node=$(hostname -s)
    memory_mb=$(awk '/^MemTotal/ { print int($2 / 1024 * 0.8) }' /proc/meminfo)
    mkdir -p "$folder"/{munge,state,spool}
    # munged accepts a key that its own user alone can read, and a socket that all can reach.
    chmod 711 "$folder" "$folder/munge"
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
    {
        [ "$gpus" -eq 0 ] || echo "Name=gpu Count=$gpus"
    } >"$folder/gres.conf"
    cat >"$SLURM_CONF" <<CONF
ClusterName=fdllm
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
GresTypes=gpu
ReturnToService=2
KillWait=10
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory_mb Gres=gpu:$gpus
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
    [ "$gpus" -gt 0 ] || sed -i '/^GresTypes/d; s/ Gres=gpu:0$//' "$SLURM_CONF"
}

# The process of a daemon of this folder, if it runs: a number that another process has since been
# given does not count.
daemon_pid() {
    local pid
    pid=$(cat "$folder/$1.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q "$1.*$folder/" || return 1
    echo "$pid"
}

launch() {
    local name=$1
    shift
    daemon_pid "$name" >/dev/null || "$@" </dev/null >"$folder/$name.out" 2>&1 || {
        echo "$name did not start; see $folder/$name.out and $folder/$name.log" >&2
        exit 1
    }
}

await_node() {
    local state=''
    for _ in $(seq 150); do
        state=$(sinfo --noheader --format=%T 2>"$folder/sinfo.out") || state='no answer'
        case $state in idle | mixed | allocated | completing) return ;; esac
        # After slurmctld was away, a node is believed dead until it registers anew.
        if [ "$state" = down ] || [ "$state" = 'down*' ]; then
            scontrol update "nodename=$(hostname -s)" state=resume 2>/dev/null || true
        fi
        sleep 0.2
    done
    echo "the node does not come up (state: $state); see $folder/slurmctld.log, slurmd.log" >&2
    exit 1
}

end() {
    local pid
    pid=$(daemon_pid "$1") || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 100); do
        [ -e "/proc/$pid" ] || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

start() {
    install_packages
    write_configuration
    launch munged munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munge/seed"
    launch slurmctld slurmctld -f "$SLURM_CONF"
    launch slurmd slurmd -f "$SLURM_CONF"
    await_node
    printf 'export SLURM_CONF=%q\n' "$SLURM_CONF"
}

stop() {
    [ -e "$SLURM_CONF" ] || return 0
    if daemon_pid slurmctld >/dev/null && daemon_pid slurmd >/dev/null; then
        squeue --noheader --format=%A 2>/dev/null | sort -u | xargs -r scancel 2>/dev/null || true
        for _ in $(seq 150); do
            [ -n "$(squeue --noheader 2>/dev/null)" ] || break
            sleep 0.1
        done
    fi
    end slurmd
    end slurmctld
    end munged
}

"$command"
