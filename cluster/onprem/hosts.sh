#!/usr/bin/env bash
# Ray on a list of hosts, by ssh.
#
#   cluster/onprem/hosts.sh up HOSTS        start Ray on each; the first is the head
#   cluster/onprem/hosts.sh status HOSTS    how many nodes there are
#   cluster/onprem/hosts.sh down HOSTS      end it; all Ray of this user on these hosts
#
# HOSTS has a line for each host: [user@]host, and options of `ray start` for it, as in
#   ray@10.0.0.5 --num-cpus=0
#   ray@10.0.0.6 --num-gpus=4
# raylm, its Python environment and the shared folders have the same paths on all.
#
#   RAYLM_ENV     file on the hosts that puts raylm on PATH (none)
#   RAYLM_SSH     how to reach a host (ssh -o BatchMode=yes -o ConnectTimeout=10)
#   RAYLM_STATE   folder here with the cluster's token ($HOME/.raylm/onprem)
#   RAYLM_THERE   folder on the hosts for the token and Ray's environment (.raylm/onprem)
#   RAYLM_TMP     folder on the hosts for Ray's own files (/tmp/ray)
#   RAYLM_PORT    port of the head (6379); the dashboard has 8265
#   RAYLM_WAIT_S  how long all may take to join (120)
set -euo pipefail
usage() { sed -n 's/^#   cluster/   cluster/p' "$0" >&2; exit 2; }
(($# == 2)) || usage
action=$1 file=$2
here=$(cd "$(dirname "$0")/.." && pwd)
read -ra ssh <<< "${RAYLM_SSH:-ssh -o BatchMode=yes -o ConnectTimeout=10}"
state=${RAYLM_STATE:-$HOME/.raylm/onprem}
there=${RAYLM_THERE:-.raylm/onprem}
port=${RAYLM_PORT:-6379}
hosts=() options=()
[[ -f $file ]] || { echo "no such file: $file" >&2; exit 2; }
while read -r host more; do
  if [[ -n $host && $host != \#* ]]; then
    hosts+=("$host") options+=("$more")
  fi
done < "$file"
((${#hosts[@]} > 0)) || { echo "$file names no host" >&2; exit 2; }

address_of() {
  local found
  found=$(getent ahostsv4 "${1##*@}" | awk 'NR == 1 { print $1 }')
  [[ -n $found ]] || { echo "no address of ${1##*@} is known here" >&2; exit 3; }
  echo "$found"
}
head=$(address_of "${hosts[0]}")

# Runs what comes by stdin on a host, in raylm's environment there.
on() {
  { printf 'set -eu\n'
    # Debian's bash reads ~/.bashrc again in each job while it thinks that it was called by ssh.
    printf 'unset SSH_CLIENT SSH2_CLIENT SSH_CONNECTION\n'
    printf 'if [ -n %q ]; then . %q; fi\n' "${RAYLM_ENV:-}" "${RAYLM_ENV:-/dev/null}"
    printf 'cd && mkdir -p %q && cd %q && [ ! -f env.sh ] || . ./env.sh\n' "$there" "$there"
    # shellcheck disable=SC2016 # of the host's own shell
    printf 'export RAY_AUTH_TOKEN_PATH="$PWD/token"\n'
    cat
  } | "${ssh[@]}" "$1" bash -s
}

# The token goes by stdin, so that no list of processes shows it.
give() {
  "${ssh[@]}" "$1" "umask 077; mkdir -p '$there' && cat > '$there/$3'" < "$2"
}

start() {
  local host=$1 role=$2 more=$3 address
  address=$(address_of "$host")
  give "$host" "$state/token" token && give "$host" "$here/env.sh" env.sh || return 1
  if [[ $role == head ]]; then
    role="--head --port=$port --dashboard-host=$address --dashboard-port=8265"
    role+=" --temp-dir=${RAYLM_TMP:-/tmp/ray}"
  else
    role="--address=$head:$port"
  fi
  on "$host" <<< "command -v ray >/dev/null || { echo 'ray is not on PATH' >&2; exit 3; }
ulimit -n \$(ulimit -H -n)
exec ray start $role --node-ip-address=$address --disable-usage-stats $more >/dev/null"
}

num_nodes() {
  on "${hosts[0]}" <<< "ray list nodes --address=http://$head:8265 --filter state=ALIVE --format json" \
    2>/dev/null | grep -o '"node_id"' | wc -l || true
}

down() {
  local failed=0 index
  # The head last: what still runs can end in order.
  for ((index = ${#hosts[@]} - 1; index >= 0; index--)); do
    on "${hosts[index]}" <<< 'ray stop >/dev/null; rm -f token env.sh' ||
      { echo "${hosts[index]}: Ray could not be ended" >&2; failed=3; }
  done
  return "$failed"
}

case $action in
  up)
    umask 077
    mkdir -p "$state"
    [[ -s $state/token ]] || head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$state/token"
    for index in "${!hosts[@]}"; do
      if ((index == 0)); then role="head"; else role="worker"; fi
      if ! start "${hosts[index]}" "$role" "${options[index]}"; then
        echo "${hosts[index]}: Ray does not start; what was started is ended" >&2
        hosts=("${hosts[@]:0:index+1}")
        down 2>/dev/null || true
        exit 3
      fi
      echo "${hosts[index]}: started" >&2
    done
    deadline=$((SECONDS + ${RAYLM_WAIT_S:-120}))
    until found=$(num_nodes); ((found >= ${#hosts[@]})); do
      ((SECONDS < deadline)) || { echo "$found of ${#hosts[@]} nodes have joined" >&2; exit 3; }
      sleep 1
    done
    echo "export RAY_AUTH_TOKEN_PATH=$state/token"
    echo "raylm submit -c raylm.yaml --address http://$head:8265"
    ;;
  status)
    found=$(num_nodes)
    echo "$found of ${#hosts[@]} nodes"
    ((found >= ${#hosts[@]})) || exit 3
    ;;
  down) down ;;
  *) usage ;;
esac
