create table if not exists sql_note (id int generated always as identity primary key, text text not null);
select headrace.publish_changes('sql_note', 'sql:notes');
