#!/bin/sh
# Makes the passwords and keys of docker-compose.yml in .secrets, once: what is there already stays as it is.
# They belong to the volumes: keep or delete the two together.
set -eu
cd "$(dirname "$0")/../.."

# The folder is closed to others; the files must be readable for whatever account a container runs as.
umask 022
mkdir -p .secrets
chmod 700 .secrets

keep() {
    [ -s ".secrets/$1" ] && return
    cat >".secrets/$1.new"
    mv ".secrets/$1.new" ".secrets/$1"
}

# 190 random bits of letters and digits: nothing that a URL or a configuration file would have to quote.
password() { LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c 32; }
key() { head -c 32 /dev/urandom | base64; }

password | keep postgres_password
password | keep users_admin_password
key | keep users_key_encryption_key
key | keep items_cursor_key
for service in users items notifications; do
    password | keep "${service}_database_password"
    printf 'postgresql://%s:%s@postgres:5432/%s' "$service" "$(cat ".secrets/${service}_database_password")" "$service" |
        keep "${service}_database_url"
done
for user in gateway items notifications operator users; do
    password | keep "${user}_nats_password"
    printf 'NATS_PASSWORD_%s: "%s"\n' "$(echo "$user" | tr '[:lower:]' '[:upper:]')" "$(cat ".secrets/${user}_nats_password")"
done >.secrets/nats_passwords.conf
