"""From files that others wrote to rows: formats, columns, published layouts."""
