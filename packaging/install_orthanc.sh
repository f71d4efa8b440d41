#!/bin/sh
# Installs Debian's Orthanc and its DICOMweb plugin where they are missing; only that asks for root.
# No service is started: `sliceprop ohif` starts Orthanc itself, without privileges.
set -eu

if ls /usr/sbin/Orthanc /usr/*/orthanc/plugins/libOrthancDicomWeb.so* >/dev/null 2>&1; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "error: Orthanc and its DICOMweb plugin are needed and this is neither Debian nor Ubuntu; install them" >&2
    exit 1
fi
root=
if [ "$(id -u)" != 0 ]; then
    root=sudo
    if ! command -v sudo >/dev/null; then
        echo "error: Orthanc is missing; run as root: apt-get install --no-install-recommends orthanc orthanc-dicomweb" >&2
        exit 1
    fi
fi
echo "Installing the packages orthanc and orthanc-dicomweb${root:+; sudo may ask for your password}"
$root apt-get update
$root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes --no-install-recommends orthanc orthanc-dicomweb
if [ -d /run/systemd/system ] && systemctl is-enabled --quiet orthanc 2>/dev/null; then
    echo "Switching off the service that the package has just brought"
    $root systemctl disable --now orthanc
fi
