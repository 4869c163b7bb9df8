#!/usr/bin/env bash
# Made by `toolkit deploy` from llama3.1-405b-h100-2x8-fp16.yaml. Do not edit it: change the YAML and deploy again.
# serve.sbatch runs it in the image, on each node: toolkit up on the first, sshd on the others.
# Usage: node.sh FOLDER YAML
set -euo pipefail
node=$1 yaml=$2
ssh=$node/ssh
# A port of this job, so that two jobs on one node do not meet.
port=$((20000 + SLURM_JOB_ID % 20000))
echo "$SLURMD_NODENAME" > "$ssh/host-$SLURM_NODEID"

if [ "$SLURM_NODEID" != 0 ]; then
  until [ -e "$ssh/ready" ]; do sleep 1; done
  # sshd gives a command nothing of the image's environment, such as LD_LIBRARY_PATH: it is kept for ForceCommand.
  export -p > "$ssh/environment-$SLURM_NODEID"
  # The same key on both sides: who has it is a node of this job. Nothing else gets in, and no shell without a command.
  cat > "$ssh/sshd_config-$SLURM_NODEID" <<END
Port $port
HostKey $ssh/key
AuthorizedKeysFile $ssh/key.pub
AuthenticationMethods publickey
# The folders above belong to whoever owns the file system.
StrictModes no
UsePAM no
PidFile none
DisableForwarding yes
PermitTTY no
ForceCommand . $ssh/environment-$SLURM_NODEID; eval "\$SSH_ORIGINAL_COMMAND"
END
  "$(PATH=$PATH:/usr/sbin command -v sshd)" -D -e -f "$ssh/sshd_config-$SLURM_NODEID" &
  # Until the first node has ended its ranks here.
  until [ -e "$ssh/over" ]; do
    kill -0 $! 2> /dev/null || { wait $!; exit 1; }
    sleep 1
  done
  kill $!
  exit 0
fi

trap 'touch "$ssh/over"' EXIT
ssh-keygen -q -t ed25519 -N "" -C group -f "$ssh/key"
echo "group $(cat "$ssh/key.pub")" > "$ssh/known_hosts"
# cluster.launch_agent: AGENT HOST COMMAND.
cat > "$ssh/agent" <<END
#!/bin/sh
exec ssh -F $ssh/config "\$@"
END
chmod +x "$ssh/agent"
cat > "$ssh/config" <<END
Host *
  Port $port
  IdentityFile $ssh/key
  IdentitiesOnly yes
  HostKeyAlias group
  UserKnownHostsFile $ssh/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 10
END
touch "$ssh/ready"
# cluster.hostfile: the nodes in the order of the ranks, when all of them answer.
number=0
while [ "$number" -lt "$SLURM_NNODES" ]; do
  until [ -s "$ssh/host-$number" ]; do sleep 1; done
  host=$(cat "$ssh/host-$number")
  [ "$number" = 0 ] || until "$ssh/agent" "$host" true; do sleep 1; done
  echo "$host" >> "$ssh/hosts"
  number=$((number + 1))
done

toolkit up "$node/$yaml" &
# serve.sbatch asks by this file: then SIGTERM to toolkit up alone. It drains the door, then the replicas.
until [ -e "$node/end" ] || ! kill -0 $! 2> /dev/null; do sleep 1; done
[ ! -e "$node/end" ] || kill $! 2> /dev/null || true
code=0
wait $! || code=$?
exit "$code"
