//! Values of v1 requests for models whose inputs have names: read as they are written, since a number's type is known only
//! when its input is.

use protocol::json::{Kind, Reader, excerpt};
use protocol::v1::V1Error;
use std::borrow::Cow;

/// A value as it is written: numbers become such when it is known of which type.
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(Cow<'a, str>),
    List(Vec<Value<'a>>),
    Object(Members<'a>),
}

/// The members of an object, in the order of their names, each of which is there once.
pub(super) type Members<'a> = Vec<(Cow<'a, str>, Value<'a>)>;

/// The member of this name.
pub(super) fn member<'v, 'a>(members: &'v Members<'a>, name: &str) -> Option<&'v Value<'a>> {
    members.binary_search_by(|(key, _)| (**key).cmp(name)).ok().map(|at| &members[at].1)
}

/// What is read of a body.
#[derive(Default)]
pub(super) struct Request<'a> {
    pub(super) inputs: Option<Value<'a>>,
    pub(super) instances: Option<Value<'a>>,
}

impl<'a> Request<'a> {
    pub(super) fn read(body: &'a [u8]) -> Result<Self, V1Error> {
        let mut reader = Reader::new(body);
        if reader.kind()? != Kind::Object {
            return Err(V1Error::Invalid("expected an object with \"instances\" or \"inputs\"".into()));
        }
        let (mut request, mut entries) = (Request::default(), reader.object()?);
        while let Some(key) = reader.key(&mut entries)? {
            let slot = match &*key {
                "inputs" => &mut request.inputs,
                "instances" => &mut request.instances,
                _ => {
                    reader.skip()?;
                    continue;
                }
            };
            if slot.replace(Value::read(&mut reader)?).is_some() {
                return Err(V1Error::Invalid(format!("\"{key}\" appears twice")));
            }
        }
        reader.end()?;
        Ok(request)
    }
}

impl<'a> Value<'a> {
    /// The reader bounds the depth.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, V1Error> {
        Ok(match reader.kind()? {
            Kind::Null => {
                reader.null()?;
                Value::Null
            }
            Kind::Bool => Value::Bool(reader.boolean()?),
            Kind::Number => Value::Number(reader.number()?),
            Kind::String => Value::Text(reader.string()?),
            Kind::Array => {
                let (mut items, mut entries) = (Vec::new(), reader.array()?);
                while reader.element(&mut entries)? {
                    items.push(Value::read(reader)?);
                }
                Value::List(items)
            }
            Kind::Object => {
                let (mut members, mut entries) = (Members::new(), reader.object()?);
                while let Some(key) = reader.key(&mut entries)? {
                    members.push((key, Value::read(reader)?));
                }
                members.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
                if let Some(pair) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                    let what = format!("'{}' appears twice in the object that ends", excerpt(&pair[0].0));
                    return Err(V1Error::Values(reader.error(what).to_string()));
                }
                Value::Object(members)
            }
        })
    }

    pub(super) fn members(&self) -> Option<&Members<'a>> {
        if let Value::Object(members) = self { Some(members) } else { None }
    }

    /// As errors show it.
    pub(super) fn shown(&self) -> String {
        match self {
            Value::Null => "null".into(),
            Value::Bool(flag) => flag.to_string(),
            Value::Number(number) => excerpt(number).into_owned(),
            Value::Text(text) => format!("\"{}\"", excerpt(text)),
            Value::List(_) => "a list".into(),
            Value::Object(_) => "an object".into(),
        }
    }

    /// `null` is not-a-number, and whole numbers are Python's: they have no negative zero.
    pub(super) fn float(&self) -> Option<f64> {
        match self {
            Value::Null => Some(f64::NAN),
            Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
            Value::Number("-0") => Some(0.0),
            Value::Number(number) => number.parse().ok(),
            _ => None,
        }
    }

    /// `3.0` and `3e2` are whole, too.
    pub(super) fn integer(&self) -> Option<i128> {
        if let Value::Number(number) = self
            && let Ok(value) = number.parse()
        {
            return Some(value);
        }
        let (value, bound) = (self.float()?, 2f64.powi(64));
        (value.fract() == 0.0 && value.abs() <= bound).then_some(value as i128)
    }
}
