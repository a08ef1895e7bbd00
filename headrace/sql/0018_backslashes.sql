-- Functions whose texts have backslashes fix standard_conforming_strings, since with a session's `off` these texts, which
-- are patterns, would be others.

alter function headrace.set_retention(text, interval, bigint) set standard_conforming_strings to on;
alter function headrace.template_pieces(text) set standard_conforming_strings to on;
