#!/bin/sh
# Puts the units in place, and the example configuration where there is none yet. DESTDIR: below another root.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=${DESTDIR:-}
install -d -m 755 "$root/etc/systemd/system" "$root/etc/slipstream"
install -d -m 700 "$root/etc/slipstream/keys"
install -m 644 "$here/slipstream.service" "$here/slipstream.socket" "$root/etc/systemd/system/"
for file in slipstream.toml slipstream.env; do
  [ -e "$root/etc/slipstream/$file" ] || install -m 644 "$here/$file" "$root/etc/slipstream/"
done
