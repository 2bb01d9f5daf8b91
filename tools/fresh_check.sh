#!/usr/bin/env bash
# Proves the README's commands on a machine that has nothing: a bare Debian in a temporary folder, with only git, g++ and
# make installed, a clone of the last commit, then `make run`, `make test` and the README's Python snippet.
# Usage (as root): tools/fresh_check.sh [FOLDER]
#   FOLDER        where to put the machine; kept if named, else a temporary one that is removed at the end
#   SUITE=NAME    another release (default bookworm);  MIRROR=URL  (default: the one this machine's apt uses)
set -euo pipefail
cd "$(dirname "$0")/.."
((EUID == 0)) || { echo "fresh_check: needs root (chroot)" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "fresh_check: install debootstrap first (apt-get install debootstrap)" >&2; exit 1; }

suite=${SUITE:-bookworm}
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)}
[[ -n $mirror ]] || { echo "fresh_check: apt names no mirror here; set MIRROR" >&2; exit 1; }

keep=${1:+1}
root=${1:-$(mktemp -d)}
root=$(realpath -m "$root")
mkdir -p "$root"
cleanup() {
  for m in proc dev; do if mountpoint -q "$root/$m"; then umount -l "$root/$m"; fi; done
  [[ -n $keep ]] || rm -rf --one-file-system "$root"
}
trap cleanup EXIT

step() { printf '\n=== %s (%d s)\n' "$*" "$SECONDS"; }
# Nothing of this machine's environment comes along but what reaches the network. The certificates stand outside
# /etc/ssl, which ca-certificates rewrites when apt installs it.
inside() {
  local pass=() v
  for v in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_DEFAULT_TIMEOUT; do
    if [[ -n ${!v:-} ]]; then pass+=("$v=${!v}"); fi
  done
  if [[ -e $root/opt/host.crt ]]; then pass+=(PIP_CERT=/opt/host.crt); fi
  chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    LANG=C.UTF-8 TERM="${TERM:-dumb}" DEBIAN_FRONTEND=noninteractive "${pass[@]}" /bin/bash -euo pipefail -c "$1" </dev/null
}

step "debootstrap $suite"
if [[ ! -e $root/etc/debian_version ]]; then
  debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$root.log" 2>&1 || { tail -n 20 "$root.log"; exit 1; }
  rm -f "$root.log"
fi
cp /etc/resolv.conf /etc/hosts "$root/etc/" 2>/dev/null || true
if [[ -e /etc/ssl/certs/ca-certificates.crt ]]; then mkdir -p "$root/opt" && cp /etc/ssl/certs/ca-certificates.crt "$root/opt/host.crt"; fi
mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc" 2>/dev/null || echo "fresh_check: no /proc inside (not allowed to mount)"
mount --rbind /dev "$root/dev" 2>/dev/null || echo "fresh_check: no /dev inside (not allowed to mount)"

step "git, g++, make"
inside "apt-get -qq update && apt-get -qq install -y --no-install-recommends git g++ make >/dev/null"

step "clone"
rm -rf "$root/root/glint"
git -c safe.directory='*' clone -q "file://$PWD" "$root/root/glint"

step "make run"
inside "cd ~/glint && make run"

step "make test"
inside "cd ~/glint && make test"

step "the README's Python snippet"
inside "cd ~/glint
python3 -m venv /tmp/user && /tmp/user/bin/pip install -q .
sed -n '/^\`\`\`python\$/,/^\`\`\`\$/p' README.md | grep -v '^\`\`\`' > /tmp/snippet.py
cp /tmp/snippet.py snippet.py && /tmp/user/bin/python snippet.py | tee /tmp/said && grep -q '[a-z]' /tmp/said"

step "done: the README holds on a fresh $suite"
