-- Texts with a backslash in them are read as standard SQL has it, whatever the session says: under
-- standard_conforming_strings = off the patterns of these functions were others.

alter function headrace.set_retention(text, interval, bigint) set standard_conforming_strings to on;
alter function headrace.template_pieces(text) set standard_conforming_strings to on;
