# What the job scripts beside this file share; sourced by them in the folder that sbatch was called in.
# Everything that depends on the site is in slurm/sites/$WIDEFIELD_SITE.env; without one, .venv is used as it is.

fail() { echo "$(basename "${SLURM_JOB_NAME:-job}"): $*" >&2; exit 2; }

[ -n "${SLURM_JOB_ID:-}" ] || fail "start this with sbatch (or widefield submit)"
if [ -n "${WIDEFIELD_SITE:-}" ]; then
  [ -f "slurm/sites/$WIDEFIELD_SITE.env" ] || fail "there is no slurm/sites/$WIDEFIELD_SITE.env"
  set -a; source "slurm/sites/$WIDEFIELD_SITE.env"; set +a
fi
set +eu  # modules and virtual environments are not written for strict shells
eval "${WIDEFIELD_SETUP:-source .venv/bin/activate}"
set -eu
export TMPDIR=${WIDEFIELD_LOCAL_DIR:-${TMPDIR:-/tmp}}  # for stores.stage_to='$TMPDIR'
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
command -v widefield >/dev/null || fail "widefield is not on the PATH: mend WIDEFIELD_SETUP, or run make setup here"
echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, site ${WIDEFIELD_SITE:-none}, $(date -u +%FT%TZ), attempt $((${SLURM_RESTART_COUNT:-0} + 1))"

# Run a command. Slurm's warning before the time limit (USR1) is passed on to it; when it ends with 75, its state saved,
# the job goes back into the queue and this script starts again.
run_to_the_end() {
  local status warned pid
  "$@" &
  pid=$!
  trap 'warned=1; echo "job: warned by Slurm, asking the run to save its state"; kill -USR1 "$pid"' USR1
  while true; do
    warned=
    wait "$pid" && status=0 || status=$?
    [ -n "$warned" ] || break  # wait also returns for the signal
  done
  trap - USR1
  if [ "$status" = 75 ]; then
    echo "job: state saved, back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$status"
}
