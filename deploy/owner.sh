#!/bin/sh
# Run once by the image of PostgreSQL (compose.yaml), when its volume is new.
exec psql --set=ON_ERROR_STOP=1 --username=postgres --set=password="$OWNER_PASSWORD" --file=/owner.sql
