#!/usr/bin/env bash
# A real Apptainer on Debian 12, which has none: in a root of its own, entered through a namespace.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: .ci/apptainer.sh install [--folder DIR]
       .ci/apptainer.sh base DIR
       .ci/apptainer.sh pip DIR

install  put Apptainer from Debian's sid into DIR (needs root), and print the line that makes
         `apptainer` work, from inside a SLURM job too:
             export PATH=DIR/bin-outside:$PATH
         so:  eval "$(.ci/apptainer.sh install)"
         Installing again does nothing but print that line.
base     a Debian 12 root with Python in DIR, to build Apptainer.def on where no container registry
         can be reached:
             apptainer build --build-arg bootstrap=localimage --build-arg base=DIR …
pip      how this machine's pip finds packages, in DIR: its settings, certificates and wheel
         folders, for a build alone, never for the image:
             apptainer build --bind DIR:/mnt …

--folder DIR   where Apptainer's own root lies (/opt/fdllm-apptainer)
TEXT
}

packages() {
    local missing=()
    command -v debootstrap >/dev/null || [ -x /usr/sbin/debootstrap ] || missing+=(debootstrap)
    command -v bwrap >/dev/null || missing+=(bubblewrap)
    command -v newuidmap >/dev/null || missing+=(uidmap)
    [ ${#missing[@]} -gt 0 ] || return 0
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# The mirror that this machine's apt installs Debian's own packages from.
mirror() {
    local from
    # shellcheck disable=SC2016 # names of fields that apt fills in
    from=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' |
        awk '$2 == "bookworm" && $3 == "main" { print $1; exit }')
    [ -n "$from" ] || { echo "apt names no mirror of Debian 12 (bookworm)" >&2 && exit 1; }
    echo "$from"
}

# debootstrap SUITE INTO PACKAGES, in one piece: a root is whole, or not there.
root_of() {
    packages
    local log into=$2
    rm -rf "$into.part"
    log=$(mktemp)
    PATH=$PATH:/usr/sbin debootstrap --variant=minbase --include="$3" "$1" "$into.part" "$(mirror)" \
        >"$log" 2>&1 || { tail -n 20 "$log" >&2 && exit 1; }
    rm -rf "$log" "$into.part"/var/cache/apt/archives/*.deb "$into.part"/var/lib/apt/lists/*
    mv "$into.part" "$into"
}

install() {
    packages
    if [ ! -x "$folder/usr/bin/apptainer" ]; then
        root_of sid "$folder" ca-certificates,apptainer,uidmap,squashfuse,fuse-overlayfs,squashfs-tools
    fi
    cp -L /etc/hosts /etc/resolv.conf "$folder/etc/"
    for file in /etc/subuid /etc/subgid; do
        grep -qs '^root:0:65536$' "$file" || echo root:0:65536 >>"$file"
    done
    mkdir -p "$folder/bin-outside"
    # What a command line may name is visible under its own name; the system is Apptainer's own.
    cat >"$folder/bin-outside/apptainer" <<TEXT
#!/usr/bin/env bash
set -euo pipefail
binds=()
for place in /*; do
    case \$place in
    /bin | /boot | /dev | /etc | /lib* | /proc | /run | /sbin | /sys | /usr | /var) ;;
    *) [ ! -d "\$place" ] || [ -L "\$place" ] || binds+=(--bind "\$place" "\$place") ;;
    esac
done
exec unshare --user --map-users=0,0,65536 --map-groups=0,0,65536 \\
    bwrap --bind '$folder' / --dev-bind /dev /dev --proc /proc --bind /sys /sys "\${binds[@]}" \\
    --ro-bind /etc/ssl/certs /etc/ssl/certs --chdir "\$PWD" --cap-add ALL \\
    /usr/bin/apptainer "\$@"
TEXT
    chmod +x "$folder/bin-outside/apptainer"
    "$folder/bin-outside/apptainer" --version >&2
    echo "export PATH=$folder/bin-outside:\$PATH"
}

base() {
    [ ! -x "$1/usr/bin/python3" ] || return 0
    root_of bookworm "$1" ca-certificates,python3,python3-venv
    rm -rf "${1:?}"/dev/* # device nodes that a user namespace may not copy
}

# What pip is told here, by its environment or else by its files.
setting() {
    python3 -m pip config get ":env:.$1" 2>/dev/null || python3 -m pip config get "global.$1" 2>/dev/null || true
}

pip_folder() {
    local one from
    mkdir -p "$1/wheels"
    {
        echo '[global]'
        for one in index-url extra-index-url; do
            # A local index is no place that a build can see.
            from=$(setting "$one" | tr ' ' '\n' | grep -v '^file:' | tr '\n' ' ' || true)
            [ -z "${from// /}" ] || echo "$one = $from"
        done
        echo 'find-links = /mnt/wheels'
        from=$(setting cert)
        if [ -n "$from" ]; then
            cp -L "$from" "$1/certificates.pem"
            echo 'cert = /mnt/certificates.pem'
        fi
    } >"$1/pip.conf"
    for one in $(setting find-links); do
        [ ! -d "$one" ] || cp -Lr "$one/." "$1/wheels/"
    done
}

case ${1:-} in
install)
    shift
    folder=/opt/fdllm-apptainer
    if [ "${1:-}" = --folder ] && [ $# -eq 2 ]; then
        folder=$(realpath -m "$2")
    elif [ $# -gt 0 ]; then
        usage >&2 && exit 2
    fi
    install
    ;;
base) if [ $# -eq 2 ]; then base "$(realpath -m "$2")"; else usage >&2 && exit 2; fi ;;
pip) if [ $# -eq 2 ]; then pip_folder "$(realpath -m "$2")"; else usage >&2 && exit 2; fi ;;
-h | --help) usage ;;
*) usage >&2 && exit 2 ;;
esac
