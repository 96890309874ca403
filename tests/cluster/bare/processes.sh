# shellcheck shell=bash
# Daemons: a pid file holds the pid and its start time, so that a stale one never names a stranger.
# shellcheck disable=SC2154,SC2153 # paths and networks: ../bare.sh

started_at() { # PID: nothing for one that is gone or a zombie
  local fields; { read -r -a fields < <(sed 's/.*) //' "/proc/$1/stat"); } 2>/dev/null || return 0
  [ "${fields[0]}" = Z ] || echo "${fields[19]}"
}

pid_of() { # NAME: its pid if it is alive and ours
  local pid when
  { read -r pid when < "$PIDS/$1.pid"; } 2>/dev/null || return 1
  [ -n "$when" ] && [ "$(started_at "$pid")" = "$when" ] && echo "$pid"
}

start() { # NAME COMMAND...: unless it runs already
  local name=$1 pid; shift
  pid_of "$name" >/dev/null && return
  setsid nohup "$@" > "$LOGS/$name.log" 2>&1 < /dev/null 9>&- &
  pid=$!
  sleep 0.1
  echo "$pid $(started_at "$pid")" > "$PIDS/$name.pid"
}

stop() { # NAME [SIGNAL]: asks, waits 10 s, insists
  local pid
  if pid=$(pid_of "$1"); then
    kill "-${2:-TERM}" "$pid" 2>/dev/null || true
    wait_for 10 gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$PIDS/$1.pid"
}

gone() { [ -z "$(started_at "$1")" ]; }
