-- Run once by a superuser, in psql: the role that headrace connects as, and its database. It owns the schema headrace,
-- and is no superuser, so that nothing that runs with its rights can leave the database.
--
--     psql --set=password=… --file deploy/owner.sql
--
-- In a database that exists, instead of the last statement: GRANT CREATE ON DATABASE app TO headrace.
-- Where a superuser has migrated before: ALTER SCHEMA headrace OWNER TO headrace, and for all that is in it the same.

-- Applications publish as members of this role. Roles are shared by all databases of a server.
create role headrace_publisher nologin;
create role headrace login password :'password';
create database headrace owner headrace;
