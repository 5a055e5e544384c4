-- The schema registry keeps its records in a database of its own: schema ids must outlive a
-- restart, or the records written under them could no longer be read.
CREATE DATABASE registry;
