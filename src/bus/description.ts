/** What a bus or a device says about itself, as plain data: `anydma devices` prints it, for people or for programs. */
export interface Description {
  /** Fields for programs; they become part of the JSON document. Names that the document has already are not taken. */
  readonly document: Readonly<Record<string, unknown>>;
  /** Lines and tables for people, from top to bottom; an empty line parts them. None when there is nothing to say. */
  readonly text: readonly DescriptionPart[];
  /** Of a bus: what the list of buses says of its devices, in place of all their names. */
  readonly summary?: string;
}

/** A line, or a table. */
export type DescriptionPart = string | DescriptionTable;

/** Rows under heads. */
export interface DescriptionTable {
  readonly columns: readonly TableColumn[];
  readonly rows: readonly (readonly TableCell[])[];
}

/** A column of a table; numbers are aligned to the right. */
export interface TableColumn {
  readonly head: string;
  readonly align?: 'left' | 'right';
}

/** Text, or text that is shown as a heading, as good or as bad: bold, green or red where there are colours. */
export type TableCell = string | { readonly text: string; readonly tone: 'strong' | 'good' | 'bad' };
