/** How a bus or a device describes itself, as plain data: `anydma devices` prints it for people or as JSON. */
export interface Description {
  /** Fields for programs, merged into the JSON document. Fields that the document already has are not overwritten. */
  readonly document: Readonly<Record<string, unknown>>;
  /**
   * Lines and tables for people, from top to bottom; an empty line separates parts. Empty when there is nothing to say.
   */
  readonly text: readonly DescriptionPart[];
  /** For a bus: one line about its devices that the list of buses shows instead of all their names. */
  readonly summary?: string;
}

/** A line, or a table. */
export type DescriptionPart = string | DescriptionTable;

/** A table: rows under column headings. */
export interface DescriptionTable {
  readonly columns: readonly TableColumn[];
  readonly rows: readonly (readonly TableCell[])[];
}

/** A column of a table; numbers should be aligned to the right. */
export interface TableColumn {
  readonly head: string;
  readonly align?: 'left' | 'right';
}

/**
 * Text with an optional tone: a heading (bold), good news (green) or a problem (red), where the terminal has colours.
 */
export type TableCell = string | { readonly text: string; readonly tone: 'strong' | 'good' | 'bad' };
